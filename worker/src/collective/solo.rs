//! A gang of one: sums are what they are, and nothing is sent.

use super::{Abort, Collective, CollectiveError};

/// The collective of a worker that trains alone.
pub struct Solo {
    abort: Abort,
}

impl Solo {
    /// A gang of one, ended by `abort`.
    pub fn new(abort: Abort) -> Self {
        Self { abort }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.abort.failure().map_or(Ok(()), Err)
    }
}

impl Collective for Solo {
    fn index(&self) -> u32 {
        0
    }

    fn world_size(&self) -> u32 {
        1
    }

    fn all_reduce_i64(&mut self, _buffer: &mut [i64]) -> Result<(), CollectiveError> {
        self.check()
    }

    fn all_reduce_f32(&mut self, _buffer: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()
    }

    fn broadcast(&mut self, root: u32, _bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.check()?;
        if root != 0 {
            return Err(CollectiveError::Invalid(format!("broadcast from member {root} of a gang of 1")));
        }
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        0
    }

    fn framing_bytes_sent(&self) -> u64 {
        0
    }

    fn abort_handle(&self) -> Abort {
        self.abort.clone()
    }

    fn leave(self: Box<Self>) {}
}
