//! lorafleet: store.
