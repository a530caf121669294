//! lorafleet: telemetry.
