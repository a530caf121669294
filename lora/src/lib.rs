//! lorafleet: lora.
