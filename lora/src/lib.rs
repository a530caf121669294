//! The mathematics of lorafleet: models, adapters, optimizers and training, without network or database.

pub mod flops;
pub(crate) mod linear;
pub mod model;
pub(crate) mod ops;
pub mod params;
