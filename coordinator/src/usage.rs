//! What tenants and jobs used of the fleet: counted by the hour, without a second lost or told twice.
//!
//! Every place's time is either *counted*, which means added to its hours and to its job's costs in the transaction that
//! marked it, or read from its own row. So the sum is right at any moment, whoever counts and however often.

mod decay;
mod fold;
mod keeper;
mod read;

pub use decay::decayed;
pub use keeper::Keeper;
pub use read::{JobUsage, Window, by_hour, by_job, by_tenant};

#[cfg(test)]
mod tests;
