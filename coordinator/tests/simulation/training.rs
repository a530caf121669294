//! Exact integer training: what a step does to a state is a function of (job, state, step) alone, so that any lost,
//! doubled or foreign micro-batch shows in the last hash.

use lorafleet_spec::sampler::{Sampler, cut, share_by_speed};

/// Words of a gradient.
const WORDS: usize = 3;
/// Examples of a data set.
const EXAMPLES: u32 = 40;
/// Examples of a step.
const GLOBAL_BATCH: u32 = 12;
/// Micro-batches of a step; gangs are no larger.
pub const MICRO_BATCHES: usize = 5;

/// What a member trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Stands for adapter and moments.
    pub hash: u64,
}

/// A sum of gradients.
pub type Sum = [i64; WORDS];

/// One job's work, and what its undisturbed run gives.
#[derive(Clone, Debug)]
pub struct Work {
    seed: u64,
    /// The state after each step, from 0.
    pub undisturbed: Vec<State>,
}

impl Work {
    /// The work of `steps` steps.
    pub fn new(seed: u64, steps: u64) -> Self {
        let mut work = Self { seed, undisturbed: vec![State { step: 0, hash: mix(seed, 0) }] };
        for step in 1..=steps {
            let before = work.undisturbed[step as usize - 1];
            let (_, sum) = work.share(before, 0, &[0]);
            work.undisturbed.push(update(before, sum));
        }
        work
    }

    /// Steps.
    pub fn steps(&self) -> u64 {
        self.undisturbed.len() as u64 - 1
    }

    /// The micro-batches of the step after `state` that the member at `index` takes, and what it adds to it.
    pub fn share(&self, state: State, index: usize, speeds: &[u32]) -> (u64, Sum) {
        let step = state.step + 1;
        let examples = Sampler::new("data", self.seed, EXAMPLES, GLOBAL_BATCH).step(step);
        let lengths: Vec<usize> = examples.iter().map(|example| 1 + (*example as usize * 7) % 23).collect();
        let batches = cut(&lengths, MICRO_BATCHES, None);
        let tokens = |batch: &Vec<usize>| batch.iter().map(|place| lengths[*place] as u64).sum();
        let costs: Vec<u64> = batches.iter().map(tokens).collect();
        let mine = share_by_speed(&costs, speeds, index);
        let places = mine.iter().flat_map(|batch| &batches[*batch]);
        let sum = places.fold(zero(), |sum, place| add(sum, gradient(state.hash, step, examples[*place])));
        (mine.len() as u64, sum)
    }
}

/// The update that follows a whole sum.
pub fn update(before: State, sum: Sum) -> State {
    let hash = sum.iter().fold(mix(before.hash, before.step + 1), |hash, word| mix(hash, *word as u64));
    State { step: before.step + 1, hash }
}

/// Adds what two members did.
pub fn add(a: Sum, b: Sum) -> Sum {
    std::array::from_fn(|i| a[i].wrapping_add(b[i]))
}

/// Nothing.
pub fn zero() -> Sum {
    [0; WORDS]
}

/// The loss of a step, as everybody sees it.
pub fn loss(after: State) -> u64 {
    mix(after.hash, 7)
}

fn gradient(hash: u64, step: u64, example: u32) -> Sum {
    std::array::from_fn(|i| mix(mix(hash, step), u64::from(example) << 8 | i as u64) as i64 >> 20)
}

/// SplitMix64's finalizer over both.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed, 0x5eed))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0, 0xd1ce) % bound.max(1)
    }

    /// A number in a range.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
