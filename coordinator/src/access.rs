//! Who may do what: roles, what each call needs, and the gate before the services.

mod caller;
mod gate;
mod needs;
mod role;
mod verdict;

pub use caller::Caller;
pub use gate::Gate;
pub use role::Role;
pub use verdict::Refusal;
