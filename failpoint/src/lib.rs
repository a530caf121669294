//! Named points of the programs where a test makes them die, stop, wait or fail.
//!
//! Without the feature `on` both functions are empty, and no environment variable changes a program. With it:
//!
//! ```text
//! LORAFLEET_FAILPOINT=NAME[@STEP][*]=kill|stop|sleep:MS|error[,…]
//! LORAFLEET_DEFECT=NAME[,…]
//! ```
//!
//! A failpoint acts once in the life of a process, or each time it is reached when a `*` follows it. It says so on
//! standard error first, so that whoever set it can tell whether it was reached.

#[cfg(feature = "on")]
mod active;
#[cfg(any(feature = "on", test))]
mod rule;

/// The environment variable that names failpoints and what happens there.
pub const FAILPOINT: &str = "LORAFLEET_FAILPOINT";
/// The environment variable that names planted defects.
pub const DEFECT: &str = "LORAFLEET_DEFECT";

/// Whether failpoints can act in this build.
pub const ON: bool = cfg!(feature = "on");

/// A failpoint was told to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The failpoint.
    pub name: String,
    /// The step at which it was reached.
    pub step: u64,
}

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failpoint {} at step {}: told to fail", self.name, self.step)
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for std::io::Error {
    fn from(injected: Injected) -> Self {
        Self::other(injected)
    }
}

/// The program has come to this point of this step: does what the environment asks for here. A sleep blocks the
/// thread.
///
/// # Errors
/// [`Injected`] when told to fail here.
#[inline]
pub fn reach(name: &str, step: u64) -> Result<(), Injected> {
    #[cfg(feature = "on")]
    return active::reach(name, step);
    #[cfg(not(feature = "on"))]
    {
        let _ = (name, step);
        Ok(())
    }
}

/// Whether the environment asks for this defect, which a test must find.
#[inline]
pub fn defect(name: &str) -> bool {
    #[cfg(feature = "on")]
    return active::defect(name);
    #[cfg(not(feature = "on"))]
    {
        let _ = name;
        false
    }
}
