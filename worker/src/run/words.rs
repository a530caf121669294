//! The words of the reduced buffer that members exchange with the gradients of every step.

use lorafleet_lora::train::Trainer;

/// Where each word lies. There is room for the largest gang of the job, so that the buffer is as long whatever the
/// gang's size is: it changes from one generation to the next.
#[derive(Clone, Copy)]
pub(super) struct ControlWords {
    most: usize,
}

/// What the members of a step told each other beside the gradients; the same on each of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// The generation ends at this boundary.
    pub part: bool,
    /// Members that give their places back at this boundary.
    pub leavers: Vec<u32>,
    /// Members that could not compute their share.
    pub failed: Vec<u32>,
    /// By member, on steps that compare.
    pub hashes: Vec<u64>,
    /// By member: tokens a second; 0 where it is not known.
    pub speeds: Vec<u32>,
}

impl ControlWords {
    /// For gangs of at most so many members.
    pub fn new(most: u32) -> Self {
        Self { most: most as usize }
    }

    /// Words to reserve.
    pub fn count(self) -> usize {
        1 + 4 * self.most
    }

    /// The largest gang.
    pub fn most(self) -> usize {
        self.most
    }

    /// Members that want the generation to end after this step.
    pub fn part(self) -> usize {
        0
    }

    /// 1 when that member gives its place back.
    pub fn leave(self, member: usize) -> usize {
        1 + member
    }

    /// 1 when that member could not compute its share.
    pub fn failed(self, member: usize) -> usize {
        1 + self.most + member
    }

    /// That member's state hash, on steps that compare.
    pub fn hash(self, member: usize) -> usize {
        1 + 2 * self.most + member
    }

    /// That member's speed.
    pub fn speed(self, member: usize) -> usize {
        1 + 3 * self.most + member
    }

    /// Reads what was reduced.
    pub fn read(self, trainer: &Trainer, members: usize) -> Told {
        let word = |at: usize| trainer.control(at);
        let set = |at: &dyn Fn(usize) -> usize| {
            (0..members as u32).filter(|&member| word(at(member as usize)) > 0).collect()
        };
        Told {
            part: word(self.part()) > 0,
            leavers: set(&|member| self.leave(member)),
            failed: set(&|member| self.failed(member)),
            hashes: (0..members).map(|member| word(self.hash(member))).collect(),
            speeds: (0..members).map(|member| word(self.speed(member)) as u32).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_overlap() {
        let words = ControlWords::new(3);
        let of =
            |member| [words.leave(member), words.failed(member), words.hash(member), words.speed(member)];
        let mut all = vec![words.part()];
        all.extend((0..3).flat_map(of));
        all.sort_unstable();
        assert_eq!(all, (0..words.count()).collect::<Vec<_>>());
    }
}
