//! What a step changes: the weights and the optimizer's buffers, flat, in two whole copies.

use std::array;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Parameter;

/// A part of a buffer that belongs to one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The tensor's key.
    pub key: String,
    /// Shape of what is kept of it.
    pub shape: Vec<usize>,
    /// Place in the buffer.
    pub place: Range<usize>,
}

/// One flat buffer of an optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Its name in files: a piece's key there is `name/key`.
    pub name: &'static str,
    /// Number of values.
    pub len: usize,
    /// Where each tensor's part lies.
    pub pieces: Vec<Piece>,
}

impl Buffer {
    /// A buffer with a value for each weight, at the same place.
    pub fn like_weights(name: &'static str, parameters: &[Parameter]) -> Self {
        let piece =
            |p: &Parameter| Piece { key: p.key.clone(), shape: p.shape.clone(), place: p.place.clone() };
        let len = parameters.last().map_or(0, |last| last.place.end);
        Self { name, len, pieces: parameters.iter().map(piece).collect() }
    }
}

/// The buffers that an optimizer keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatePlan {
    /// Those of f32 values.
    pub floats: Vec<Buffer>,
    /// Those of 8-bit codes.
    pub codes: Vec<Buffer>,
}

impl StatePlan {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let sum = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.len).sum::<usize>();
        4 * sum(&self.floats) + sum(&self.codes)
    }
}

/// Everything that a step changes, after `step` finished steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Finished optimizer steps.
    pub step: u64,
    /// The trained weights.
    pub weights: Vec<f32>,
    /// The optimizer's buffers of f32, as its plan has them.
    pub floats: Vec<Vec<f32>>,
    /// The optimizer's buffers of 8-bit codes, as its plan has them.
    pub codes: Vec<Vec<u8>>,
}

/// Bytes that one task hashes.
const HASH_BLOCK: usize = 1 << 20;

impl State {
    /// A state at step 0 with `len` zero weights and the plan's buffers.
    pub fn zeros(len: usize, plan: &StatePlan) -> Self {
        Self {
            step: 0,
            weights: vec![0.0; len],
            floats: plan.floats.iter().map(|buffer| vec![0.0; buffer.len]).collect(),
            codes: plan.codes.iter().map(|buffer| vec![0; buffer.len]).collect(),
        }
    }

    /// Takes over weights at step 0, with buffers of zeros.
    pub fn start(&mut self, weights: &[f32]) {
        self.step = 0;
        self.weights.copy_from_slice(weights);
        self.floats.iter_mut().for_each(|buffer| buffer.fill(0.0));
        self.codes.iter_mut().for_each(|buffer| buffer.fill(0));
    }

    /// One of the same sizes, at step 0. Its memory is touched when it is written, by the threads that do.
    fn blank(&self) -> Self {
        Self {
            step: 0,
            weights: vec![0.0; self.weights.len()],
            floats: self.floats.iter().map(|buffer| vec![0.0; buffer.len()]).collect(),
            codes: self.codes.iter().map(|buffer| vec![0; buffer.len()]).collect(),
        }
    }

    /// Writes all of it once, so that the system gives its memory now: a first write costs far more than any later one.
    fn touch(&mut self) {
        for buffer in std::iter::once(&mut self.weights).chain(&mut self.floats) {
            buffer.par_chunks_mut(HASH_BLOCK / 4).for_each(|block| block.fill(1.0));
        }
        self.codes.iter_mut().for_each(|buffer| buffer.fill(1));
    }

    /// A hash over all of it, the same for the same bits.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.step.to_le_bytes());
        for buffer in std::iter::once(&self.weights).chain(&self.floats) {
            hash_floats(&mut hash, buffer);
        }
        for buffer in &self.codes {
            let digests: Vec<_> = buffer.par_chunks(HASH_BLOCK).map(Sha256::digest).collect();
            digests.iter().for_each(|digest| hash.update(digest));
        }
        hash.finalize().into()
    }

    /// The first N buffers of f32.
    pub(super) fn floats<const N: usize>(&self) -> [&[f32]; N] {
        array::from_fn(|i| self.floats[i].as_slice())
    }
}

/// Adds a flat buffer to a hash; its blocks are hashed side by side.
pub(crate) fn hash_floats(hash: &mut Sha256, buffer: &[f32]) {
    let block = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Sha256::digest(bytes)
    };
    let digests: Vec<_> = buffer.par_chunks(HASH_BLOCK / 4).map(block).collect();
    digests.iter().for_each(|digest| hash.update(digest));
}

/// The first N buffers, to be written.
pub(super) fn written<T, const N: usize>(buffers: &mut [Vec<T>]) -> [&mut [T]; N] {
    let mut buffers = buffers.iter_mut();
    array::from_fn(|_| {
        buffers.next().expect("a state has the buffers of its optimizer's plan").as_mut_slice()
    })
}

/// Two whole states: the current one, and a spare one into which the next is written.
///
/// Invariant: the current state is whole at every instant. Only [`States::adopt`] changes which one is current, after
/// the spare one has been written completely.
///
/// A state that somebody else still holds (see [`States::share`]) is never written: another takes its place, so that a
/// checkpoint costs no copy. That other one is kept from then on, or made before by [`States::make_room`].
#[derive(Clone, Debug)]
pub struct States {
    current: Arc<State>,
    spare: Arc<State>,
    /// What takes the place of the spare one while that is held elsewhere, in turns.
    third: Option<Arc<State>>,
}

impl States {
    /// At step 0 with these weights.
    pub fn new(weights: Vec<f32>, plan: &StatePlan) -> Self {
        let spare = State::zeros(weights.len(), plan);
        let current = State { weights, ..State::zeros(0, plan) };
        Self { current: Arc::new(current), spare: Arc::new(spare), third: None }
    }

    /// The last whole state.
    pub fn current(&self) -> &State {
        &self.current
    }

    /// The last whole state, to be kept while training goes on.
    pub fn share(&self) -> Arc<State> {
        self.current.clone()
    }

    /// The current state to read, and the spare one to write, which holds anything. What is written counts only after
    /// [`States::adopt`].
    pub fn current_and_spare(&mut self) -> (&State, &mut State) {
        if Arc::get_mut(&mut self.spare).is_none() {
            let free = self.third.take().filter(|third| Arc::strong_count(third) == 1);
            let free = free.unwrap_or_else(|| Arc::new(self.spare.blank()));
            self.third = Some(std::mem::replace(&mut self.spare, free));
        }
        let spare = Arc::get_mut(&mut self.spare)
            .expect("nobody else has a state that was just made, or is unshared");
        (&self.current, spare)
    }

    /// Makes the third state now, with its memory, so that no step waits for it when a state is shared for the first time.
    pub fn make_room(&mut self) {
        if self.third.is_none() {
            let mut third = self.spare.blank();
            third.touch();
            self.third = Some(Arc::new(third));
        }
    }

    /// Makes the spare state, now whole, the current one.
    pub fn adopt(&mut self) {
        std::mem::swap(&mut self.current, &mut self.spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> StatePlan {
        let buffer = |name, len| Buffer { name, len, pieces: Vec::new() };
        StatePlan { floats: vec![buffer("exp_avg", 3)], codes: vec![buffer("codes", 5)] }
    }

    #[test]
    fn the_spare_state_counts_only_once_adopted() {
        let mut states = States::new(vec![1.0; 4], &plan());
        let (_, spare) = states.current_and_spare();
        spare.step = 1;
        spare.weights[0] = 7.0;
        assert_eq!((states.current().step, states.current().weights[0]), (0, 1.0));
        states.adopt();
        assert_eq!((states.current().step, states.current().weights[0]), (1, 7.0));
        assert_eq!(plan().bytes(), 17);
    }

    #[test]
    fn a_shared_state_is_never_written() {
        let mut states = States::new(vec![1.0; 4], &plan());
        let shared = states.share();
        for step in 1..=3 {
            let (_, spare) = states.current_and_spare();
            (spare.step, spare.weights, spare.codes[0][0]) = (step, vec![step as f32; 4], 9);
            states.adopt();
            assert_eq!((shared.step, shared.weights[0], shared.codes[0][0]), (0, 1.0, 0));
        }
        let (current, spare) = states.current_and_spare();
        assert_eq!((current.step, spare.weights.len(), spare.floats[0].len()), (3, 4, 3));
        // Once it is let go there are two again, and none is made.
        drop(shared);
        let place = states.current_and_spare().1.weights.as_ptr();
        assert_eq!(states.current_and_spare().1.weights.as_ptr(), place);
    }

    #[test]
    fn the_memory_of_the_third_state_is_used_again() {
        let mut states = States::new(vec![1.0; 4], &plan());
        states.make_room();
        let mut places = std::collections::BTreeSet::new();
        for step in 1..=12 {
            // A checkpoint takes two steps, and then there is none for one.
            let shared = (step % 3 == 1).then(|| states.share());
            for step in [2 * step, 2 * step + 1] {
                let (_, spare) = states.current_and_spare();
                spare.step = step;
                places.insert(spare.weights.as_ptr());
                states.adopt();
            }
            assert!(shared.is_none_or(|shared| shared.step < 2 * step));
        }
        assert_eq!(places.len(), 3);
        // Two at once is one more than there is room for.
        let (first, _) = (states.share(), states.current_and_spare());
        states.adopt();
        let (second, _) = (states.share(), states.current_and_spare());
        states.adopt();
        states.current_and_spare().1.step = 99;
        assert!(first.step < 99 && second.step < 99 && states.current().step < 99);
    }

    #[test]
    fn every_part_is_in_the_hash() {
        let state = State::zeros(4, &plan());
        let mut others = vec![state.clone(); 4];
        others[0].step = 1;
        others[1].weights[3] = -0.0;
        others[2].floats[0][2] = 1.0;
        others[3].codes[0][4] = 1;
        for (place, other) in others.iter().enumerate() {
            assert_ne!(other.sha256(), state.sha256(), "{place}");
        }
        others.iter_mut().for_each(|other| other.start(&[0.0; 4]));
        assert!(others.iter().all(|other| other.sha256() == state.sha256()));
    }
}
