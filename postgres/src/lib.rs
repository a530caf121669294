//! A private Postgres: found, initialized, started and stopped by us, reachable through a Unix socket only.
//!
//! `lorafleet up` keeps its jobs in one, and every test that needs a database starts its own. When the caller is root,
//! which Postgres refuses to be, the server runs as an unprivileged account.
//!
//! ```no_run
//! use lorafleet_postgres::{Options, Postgres};
//! # fn main() -> Result<(), lorafleet_postgres::Error> {
//! let postgres = Postgres::throwaway()?; // a new, empty server; gone when dropped
//! postgres.createdb("jobs")?;
//! println!("{}", postgres.url("jobs"));
//!
//! let kept = Postgres::start("/var/lib/lorafleet/postgres".as_ref(), Options::default())?; // finds its data again
//! # Ok(()) }
//! ```

mod account;
mod binaries;
mod error;
mod folder;
mod process;
mod server;
mod template;

pub use binaries::Binaries;
pub use error::Error;
pub use server::{Options, Postgres};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
