//! lorafleet: worker.
