//! lorafleet: spec.
