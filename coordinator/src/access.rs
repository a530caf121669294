//! Who may do what: roles, what each call needs, and the gate before the services.

mod role;

pub use role::Role;
