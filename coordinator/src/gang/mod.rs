//! The life of an attempt: each thing that can happen to it is one short transaction, guarded by the fence.

mod advance;
mod agree;
mod backoff;
mod conductor;
mod end;
mod finish;
mod limits;
mod pause;
mod ready;
mod reclaim;
mod reports;
mod resize;
mod start;
mod why;

pub use advance::Moment;
pub use conductor::{Conductor, Ended};
pub use end::{ChangeError, cancel, cancel_because, give_up_loading};
pub use finish::{Finish, finished, member_gone};
pub use limits::{end_overdue, release, settle};
pub use pause::{pause, preempt, resume};
pub use ready::Loaded;
pub use reclaim::{Answer, Claim, reclaim};
pub use reports::{checkpoint_written, parted, report};
pub use resize::{grow, shrink};
pub use start::start_all;

/// The answer to a write that a worker caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced<T> {
    /// It was stored (or had been before).
    Done(T),
    /// The fence is not the job's any more, or the worker is no live member under it: nothing was written.
    Stale,
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn text_list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
