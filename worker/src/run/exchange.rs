//! What members tell each other first in a generation: how far each is, and the hash of its whole state.

use super::{
    end::{End, Halt},
    generation::Training,
};

/// Words of one member: its position, and its hash, 32 bits a word.
const WORDS: usize = 1 + 8;

/// What each member holds, by index; the same on every member.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AllHeld(Vec<Held>);

/// What one member holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    /// See [`super::member::Member::position`].
    pub position: u64,
    /// Of the whole state; zeros without one.
    pub sha256: [u8; 32],
}

impl Held {
    fn words(&self) -> [i64; WORDS] {
        let mut words = [self.position as i64; WORDS];
        for (word, bytes) in words[1..].iter_mut().zip(self.sha256.chunks_exact(4)) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | i64::from(byte));
        }
        words
    }

    fn of(words: &[i64]) -> Self {
        let mut sha256 = [0; 32];
        for (bytes, word) in sha256.chunks_exact_mut(4).zip(&words[1..]) {
            bytes.copy_from_slice(&(*word as u32).to_le_bytes());
        }
        Self { position: words[0] as u64, sha256 }
    }
}

impl AllHeld {
    /// Nobody has one: it is made, or read from a checkpoint.
    pub fn nobody_has_a_state(&self) -> bool {
        self.0.iter().all(|held| held.position == 0)
    }

    /// The lowest index with the greatest position, if anybody is behind it.
    pub fn source(&self) -> Option<u32> {
        let most = self.0.iter().map(|held| held.position).max()?;
        let behind = self.0.iter().any(|held| held.position < most);
        behind.then(|| self.0.iter().position(|held| held.position == most)).flatten().map(|at| at as u32)
    }

    /// What that member holds.
    pub fn of(&self, index: u32) -> Held {
        self.0[index as usize]
    }

    /// Members that are as far hold the same, or one of them is wrong.
    pub fn agree(&self) -> Result<(), End> {
        let positions: Vec<u64> = self.0.iter().map(|held| held.position).collect();
        if positions.iter().any(|position| *position != positions[0]) {
            return Err(End::lost(format!("members are not as far after an exchange: {positions:?}")));
        }
        let hashes: Vec<[u8; 32]> = self.0.iter().map(|held| held.sha256).collect();
        match outliers(&hashes) {
            Some(others) => {
                let hashes = hashes.iter().map(|hash| hex(&hash[..4])).collect::<Vec<_>>();
                Err(different(&format!("at position {}", positions[0]), &others, &hashes.join(", ")))
            }
            None => Ok(()),
        }
    }
}

impl Training<'_, '_> {
    /// Asks every member what it holds.
    pub fn exchange(&mut self) -> Result<AllHeld, Halt> {
        let (me, members) = (self.collective.index() as usize, self.collective.world_size() as usize);
        let position = self.member.position();
        let sha256 = if position == 0 { [0; 32] } else { self.member.trainer.state_sha256() };
        let mut buffer = vec![0i64; WORDS * members];
        buffer[WORDS * me..][..WORDS].copy_from_slice(&Held { position, sha256 }.words());
        self.collective.all_reduce_i64(&mut buffer)?;
        Ok(AllHeld(buffer.chunks_exact(WORDS).map(Held::of).collect()))
    }
}

/// The job fails, since members that computed the same hold different states.
pub(super) fn different(when: &str, others: &str, hashes: &str) -> End {
    End::Failed(format!(
        "{when} the members hold different states: {others}; their hashes are {hashes}. The workers are of different \
         kinds, or one of them computes wrongly (memory?): run the job on one kind, and test the machine that is named"
    ))
}

/// Who differs from the most common hash; nobody when all agree.
pub(super) fn outliers<T: Ord + Copy>(hashes: &[T]) -> Option<String> {
    let count = |hash: T| hashes.iter().filter(|&&other| other == hash).count();
    let most = hashes.iter().map(|&hash| count(hash)).max()?;
    if most == hashes.len() {
        return None;
    }
    let mut common: Vec<T> = hashes.iter().copied().filter(|&hash| count(hash) == most).collect();
    common.sort_unstable();
    common.dedup();
    let [majority] = common.as_slice() else {
        return Some("no majority tells which one is right".to_owned());
    };
    let others = hashes.iter().enumerate().filter(|(_, hash)| *hash != majority);
    let others: Vec<String> = others.map(|(member, _)| format!("member {member}")).collect();
    Some(format!("{} differs from the others", others.join(" and ")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(position: u64, byte: u8) -> Held {
        Held { position, sha256: [byte; 32] }
    }

    #[test]
    fn words_say_what_is_held() {
        let mut sha256 = [0; 32];
        sha256.iter_mut().zip(0..).for_each(|(byte, at)| *byte = 255 - at);
        let held = Held { position: 12_345, sha256 };
        assert_eq!(Held::of(&held.words()), held);
        assert!(held.words()[1..].iter().all(|word| (0..1 << 32).contains(word)));
    }

    #[test]
    fn the_first_of_those_that_are_farthest_gives_its_state() {
        let all = |positions: &[u64]| AllHeld(positions.iter().map(|&position| held(position, 1)).collect());
        assert!(all(&[0, 0]).nobody_has_a_state() && !all(&[0, 2]).nobody_has_a_state());
        assert_eq!(all(&[4, 5, 5, 0]).source(), Some(1));
        assert_eq!(all(&[5, 5]).source(), None);
        assert!(all(&[5, 5]).agree().is_ok() && all(&[5, 4]).agree().is_err());
        let wrong = AllHeld(vec![held(5, 1), held(5, 1), held(5, 2)]);
        let message = wrong.agree().unwrap_err().to_string();
        assert!(message.contains("member 2 differs from the others"), "{message}");
    }

    #[test]
    fn the_one_that_differs_is_named() {
        assert_eq!(outliers(&[7]), None);
        assert_eq!(outliers(&[7, 7, 7]), None);
        assert_eq!(outliers(&[7, 8, 7]).unwrap(), "member 1 differs from the others");
        assert!(outliers(&[7, 8]).unwrap().contains("no majority"));
        assert!(outliers(&[7, 7, 8, 8]).unwrap().contains("no majority"));
    }
}
