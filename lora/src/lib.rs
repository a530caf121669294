//! The mathematics of lorafleet: models, adapters, optimizers and training, without network or database.

pub mod adapter;
pub mod base;
pub mod exact;
pub mod flops;
pub mod generate;
mod linear;
pub mod model;
mod ops;
pub mod optim;
pub mod params;
mod rate;
mod tensor_file;
pub mod train;

pub use adapter::Adapter;
pub use base::{Base, BaseError};
pub use exact::ReduceBuffer;
pub use generate::{GenerateOptions, generate};
pub use rate::{MeasuredShape, product_rate};
pub use tensor_file::{Pieces, TensorFile};
pub use train::{CheckpointFiles, EvalSums, Snapshot, StepReport, TrainError, Trainer};
