//! What a job says, and whether it can be done: the same answers on a laptop, in the coordinator and in a worker.
//!
//! Nothing here computes with tensors, opens a connection or reads a clock.

pub mod base;
pub mod data;
pub mod digest;
pub mod job;
pub mod metrics;
pub mod plan;
pub mod sampler;
pub mod sweep;
pub mod targets;
pub mod tenant;
pub mod validate;

pub use base::{BaseError, BaseShape};
pub use data::{DataError, Dataset, Example, Tokenizer};
pub use job::{FieldError, Job, check_label, fill_defaults, parse_yaml};
pub use sampler::Sampler;
pub use targets::Target;
pub use tenant::{TENANT_NAME_FORM, is_tenant_name};
