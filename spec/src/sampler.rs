//! Which examples a step takes, and how they are cut: a function of (data, seed, step), never of who computes.
//!
//! What is written here decides the bits of every adapter: a change of it changes them all.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use sha2::{Digest as _, Sha256};

/// Names this rule; part of the generator's key.
const RULE: &[u8] = b"lorafleet sampler 1\0";

/// Names the examples of each step.
///
/// The examples of all steps in a row are one permutation of the data set after another, one an epoch: an epoch's
/// short tail is filled from the next permutation. Permutation e is a Fisher–Yates shuffle drawn from ChaCha8 with
/// the key sha256(rule, data digest, seed) and the stream e.
#[derive(Debug, Clone)]
pub struct Sampler {
    key: [u8; 32],
    examples: u32,
    global_batch: u32,
    /// The latest epoch's permutation: steps are usually asked for in order.
    cached: Option<(u64, Vec<u32>)>,
}

impl Sampler {
    /// A sampler over `examples` examples (at least 1), `global_batch` (at least 1) a step.
    pub fn new(data_sha256: &str, seed: u64, examples: u32, global_batch: u32) -> Self {
        assert!(examples > 0 && global_batch > 0, "a valid job has examples, and takes some in a step");
        let mut hasher = Sha256::new();
        hasher.update(RULE);
        hasher.update(data_sha256.as_bytes());
        hasher.update([0]);
        hasher.update(seed.to_le_bytes());
        Self { key: hasher.finalize().into(), examples, global_batch, cached: None }
    }

    /// The `global_batch` examples of a step, by their place in the data set; steps count from 1.
    pub fn step(&mut self, step: u64) -> Vec<u32> {
        let first = step.saturating_sub(1) * u64::from(self.global_batch);
        (first..first + u64::from(self.global_batch))
            .map(|position| {
                let place = (position % u64::from(self.examples)) as usize;
                self.permutation(position / u64::from(self.examples))[place]
            })
            .collect()
    }

    fn permutation(&mut self, epoch: u64) -> &[u32] {
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            let mut rng = ChaCha8Rng::from_seed(self.key);
            rng.set_stream(epoch);
            let mut order: Vec<u32> = (0..self.examples).collect();
            for last in (1..order.len()).rev() {
                order.swap(last, below(&mut rng, last as u64 + 1) as usize);
            }
            self.cached = Some((epoch, order));
        }
        self.cached.as_ref().map_or(&[], |(_, order)| order)
    }
}

/// A number below `bound`, each equally likely (Lemire, arXiv:1805.10941).
pub(crate) fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        // The lowest 2^64 mod bound values of the lower half would favour some results.
        if product as u64 >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

/// Cuts a step's examples, given by their lengths in tokens, into micro-batches: lists of places in the step.
///
/// Longest first, each goes to the micro-batch that has the fewest tokens so far (the first of equals), so that
/// micro-batches, and with them workers that take them in turn, have about equal work. One that would pass
/// `micro_tokens` is cut further, in the order of its examples. None is empty.
pub fn cut(lengths: &[usize], micro_batches: usize, micro_tokens: Option<usize>) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| (std::cmp::Reverse(lengths[place]), place));
    let mut batches = vec![(0, Vec::new()); micro_batches.clamp(1, lengths.len().max(1))];
    for place in order {
        // An example counts at least one token, so that empty ones are spread as well.
        if let Some((tokens, places)) = batches.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += lengths[place].max(1);
            places.push(place);
        }
    }
    let limit = micro_tokens.unwrap_or(usize::MAX);
    batches
        .into_iter()
        .flat_map(|(_, mut places)| {
            places.sort_unstable();
            split(&places, lengths, limit)
        })
        .collect()
}

/// Cuts one micro-batch where it would pass `limit` tokens.
fn split(places: &[usize], lengths: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let (mut pieces, mut tokens) = (Vec::<Vec<usize>>::new(), 0usize);
    for &place in places {
        match pieces.last_mut() {
            Some(piece) if tokens.saturating_add(lengths[place]) <= limit => {
                piece.push(place);
                tokens += lengths[place];
            }
            _ => {
                pieces.push(vec![place]);
                tokens = lengths[place];
            }
        }
    }
    pieces
}

/// The micro-batches that the member at `index` of `world_size` takes: index, index + world_size, …
pub fn share(micro_batches: usize, index: usize, world_size: usize) -> Vec<usize> {
    (index..micro_batches).step_by(world_size.max(1)).collect()
}

/// The micro-batches that the member at `index` takes when members differ in speed, in ascending order. `costs`: of
/// each micro-batch, in tokens. `speeds`: of each member, in any one unit; 0 where it is unknown, which is taken for
/// middling until it is measured.
///
/// The longest first, each to the member that would be done with it first (Graham, 1969). On integers, so that every
/// member deals alike. Speeds within a tenth of each other are noise, and count as equal.
pub fn share_by_speed(costs: &[u64], speeds: &[u32], index: usize) -> Vec<usize> {
    let speeds = comparable(speeds);
    let mut loads = vec![0u128; speeds.len()];
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&batch| (std::cmp::Reverse(costs[batch]), batch));
    let mut mine = Vec::new();
    for batch in order {
        // A micro-batch without tokens still has to be somebody's.
        let cost = u128::from(costs[batch].max(1));
        let mut first: Option<usize> = None;
        for member in 0..speeds.len() {
            // Done at (load + cost) / speed; compared crosswise.
            let sooner = |than: usize| {
                (loads[member] + cost) * u128::from(speeds[than])
                    < (loads[than] + cost) * u128::from(speeds[member])
            };
            if first.is_none_or(sooner) {
                first = Some(member);
            }
        }
        let Some(member) = first else { break };
        loads[member] += cost;
        if member == index {
            mine.push(batch);
        }
    }
    mine.sort_unstable();
    mine
}

/// Speeds without unknown ones; all the same where the differences are noise.
fn comparable(speeds: &[u32]) -> Vec<u32> {
    let mut known: Vec<u32> = speeds.iter().copied().filter(|&speed| speed > 0).collect();
    known.sort_unstable();
    let Some((&slowest, &fastest)) = known.first().zip(known.last()) else { return vec![1; speeds.len()] };
    if u64::from(fastest) * 10 <= u64::from(slowest) * 11 {
        return vec![1; speeds.len()];
    }
    let middling = known[known.len() / 2];
    speeds.iter().map(|&speed| if speed > 0 { speed } else { middling }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rule_never_changes() {
        // Golden: an independent implementation (Python, ChaCha8 from its definition) gives the same. A difference
        // changes every adapter.
        let mut sampler = Sampler::new(&"0".repeat(64), 7, 10, 4);
        let steps: Vec<_> = (1..=4).map(|step| sampler.step(step)).collect();
        assert_eq!(steps, GOLDEN);
    }

    const GOLDEN: [[u32; 4]; 4] = [[1, 5, 6, 4], [7, 9, 0, 2], [8, 3, 4, 1], [0, 5, 9, 3]];

    #[test]
    fn micro_batches_have_about_equal_work() {
        let lengths = [10, 200, 30, 40, 100, 60, 70, 90];
        let batches = cut(&lengths, 3, None);
        let tokens: Vec<usize> = batches.iter().map(|b| b.iter().map(|i| lengths[*i]).sum()).collect();
        assert_eq!(tokens.iter().sum::<usize>(), 600);
        assert_eq!(tokens, [200, 200, 200]);
        assert_eq!(cut(&[5, 5], 8, None), [[0], [1]]);
        assert_eq!(cut(&[], 8, None), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn too_many_tokens_are_cut_further() {
        assert_eq!(cut(&[5, 5, 5, 5], 1, Some(10)), [[0, 1], [2, 3]]);
        assert_eq!(cut(&[9, 9, 1], 1, Some(10)), vec![vec![0], vec![1, 2]]);
    }

    #[test]
    fn members_take_micro_batches_in_turn() {
        assert_eq!(share(5, 1, 2), [1, 3]);
        assert_eq!(share(2, 2, 3), Vec::<usize>::new());
    }

    #[test]
    fn a_faster_member_takes_more() {
        let shares = |costs: &[u64], speeds: &[u32]| -> Vec<Vec<usize>> {
            (0..speeds.len()).map(|index| share_by_speed(costs, speeds, index)).collect()
        };
        assert_eq!(shares(&[10; 6], &[0, 0]), [[0, 2, 4], [1, 3, 5]], "unknown speeds: in turn");
        assert_eq!(shares(&[10; 6], &[100, 109]), [[0, 2, 4], [1, 3, 5]], "within a tenth: in turn");
        assert_eq!(shares(&[10; 6], &[100, 210]), [vec![2, 5], vec![0, 1, 3, 4]]);
        assert_eq!(shares(&[10; 4], &[1, 1000]), [vec![], vec![0, 1, 2, 3]], "nobody waits for a snail");
        assert_eq!(
            shares(&[9, 1, 1, 1, 9], &[0, 0]),
            [vec![0, 1, 3], vec![2, 4]],
            "by tokens, not by number"
        );
        // A newcomer counts as middling: it is given work, and so is measured.
        assert_eq!(shares(&[10; 3], &[100, 400, 0]), [vec![], vec![0, 2], vec![1]]);
        assert_eq!(share_by_speed(&[1], &[], 0), Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_example_once(examples in 1u32..200, batch in 1u32..40, seed: u64) {
            let mut sampler = Sampler::new("data", seed, examples, batch);
            let steps = (2 * examples).div_ceil(batch);
            let all: Vec<u32> = (1..=u64::from(steps)).flat_map(|step| sampler.step(step)).collect();
            for epoch in all.chunks_exact(examples as usize) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..examples).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_step_does_not_depend_on_the_steps_before(examples in 1u32..100, batch in 1u32..40, step in 1u64..1000) {
            let mut walked = Sampler::new("data", 1, examples, batch);
            (1..step).for_each(|earlier| drop(walked.step(earlier)));
            prop_assert_eq!(walked.step(step), Sampler::new("data", 1, examples, batch).step(step));
        }

        #[test]
        fn cutting_loses_and_doubles_nothing(
            lengths in prop::collection::vec(0usize..100, 0..50), micro_batches in 1usize..12,
            limit in prop::option::of(100usize..300), world_size in 1usize..9,
        ) {
            let batches = cut(&lengths, micro_batches, limit);
            let mut all: Vec<_> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(batches.iter().all(|batch| !batch.is_empty()));
            prop_assert!(batches.len() >= micro_batches.min(lengths.len()));
            if let Some(limit) = limit {
                let tokens = |batch: &Vec<usize>| batch.iter().map(|i| lengths[*i]).sum::<usize>();
                prop_assert!(batches.iter().all(|batch| tokens(batch) <= limit));
            }
            let mut taken: Vec<_> = (0..world_size).flat_map(|i| share(batches.len(), i, world_size)).collect();
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..batches.len()).collect::<Vec<_>>());
        }

        /// Every micro-batch is dealt once, whatever the speeds; and nobody is later than a whole micro-batch after
        /// the fair moment at which all would end together.
        #[test]
        fn speed_deals_every_micro_batch_once(
            costs in prop::collection::vec(0u64..5000, 0..40),
            speeds in prop::collection::vec(prop_oneof![Just(0u32), 1u32..=(1 << 24)], 1..8),
        ) {
            let shares: Vec<_> = (0..speeds.len()).map(|i| share_by_speed(&costs, &speeds, i)).collect();
            let mut taken: Vec<_> = shares.iter().flatten().copied().collect();
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..costs.len()).collect::<Vec<_>>());
            let even = comparable(&speeds);
            let cost = |batch: &usize| costs[*batch].max(1);
            let all: u64 = (0..costs.len()).map(|batch| cost(&batch)).sum();
            let longest = (0..costs.len()).map(|batch| cost(&batch)).max().unwrap_or(0);
            let (total, fastest) =
                (even.iter().map(|&speed| f64::from(speed)).sum::<f64>(), even.iter().copied().max().unwrap());
            for (share, speed) in shares.iter().zip(even) {
                let done = share.iter().map(cost).sum::<u64>() as f64 / f64::from(speed);
                let fair = all as f64 / total + (speeds.len() as u64 * longest) as f64 / f64::from(fastest);
                prop_assert!(done <= fair * 1.000_001, "{done} after {fair}");
            }
        }
    }
}
