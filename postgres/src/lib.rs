//! lorafleet: postgres.
