//! lorafleet: coordinator.
