//! The mathematics of lorafleet: models, adapters, optimizers and training, without network or database.

pub mod params;
