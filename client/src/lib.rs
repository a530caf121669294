//! lorafleet: client.
