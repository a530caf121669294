//! How often members may disagree about what they do together before one of them gives up.

use crate::collective::CollectiveError;

/// Generations in a row without a new step that may end so. A generation that begins late on one side ends so once; a
/// member that runs another program ends every one so.
const MOST: u32 = 5;

/// Generations in a row that ended with a peer out of step.
#[derive(Default)]
pub(super) struct Discord {
    step: u64,
    count: u32,
}

impl Discord {
    /// Takes note of a breakage after this step; true when there were too many.
    pub fn add(&mut self, step: u64, error: &CollectiveError) -> bool {
        let again = matches!(error, CollectiveError::OutOfStep { .. }) && step == self.step;
        self.step = step;
        self.count = match error {
            CollectiveError::OutOfStep { .. } if again => self.count + 1,
            CollectiveError::OutOfStep { .. } => 1,
            _ => 0,
        };
        self.count >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Peer;

    #[test]
    fn only_the_same_again_and_again_is_too_much() {
        let peer = Peer { index: 1, worker: "b".into(), address: "b:1".into() };
        let out_of_step = CollectiveError::OutOfStep { peer, ours: "a sum".into(), theirs: "another".into() };
        let other = CollectiveError::Aborted { reason: "generation 2 begins".into() };
        let mut discord = Discord::default();
        let mut add = |step, error| discord.add(step, error);
        assert!((1..MOST).all(|_| !add(7, &out_of_step)) && add(7, &out_of_step));
        assert!((1..MOST).all(|_| !add(8, &out_of_step)), "a step was made");
        assert!(!add(8, &other), "something else");
        assert!((1..MOST).all(|_| !add(8, &out_of_step)) && add(8, &out_of_step));
    }
}
