//! lorafleet: tests.
