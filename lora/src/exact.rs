//! The reduced buffer: sums of gradients, loss and token counts over micro-batches and members, exact by default.
//!
//! Exact sums are 64-bit fixed-point integers at the scale 2^36, whose addition does not depend on order; so a step's
//! result does not depend on who computed which micro-batch. Layout of the buffer: one value per trainable parameter,
//! then the loss sum, the labelled tokens, the tokens, and the caller's control words.

use rayon::prelude::*;

/// Bits behind the binary point of every exact sum.
pub const SCALE_BITS: u32 = 36;

/// A control word is below 2^24, so that it is exact in f32 too.
pub const CONTROL_LIMIT: u32 = 1 << 24;

/// Values that one task of the elementwise passes works on: the cut is fixed, whatever the number of threads.
pub(crate) const CHUNK: usize = 16 * 1024;

const SCALE: f64 = (1u64 << SCALE_BITS) as f64;
const SUMS: usize = 3;

/// Why a micro-batch cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum AddError {
    /// A gradient is NaN or infinite.
    #[error("gradient {index} is {value}")]
    NotFinite {
        /// Place in the flat buffer.
        index: usize,
        /// The offending value.
        value: f32,
    },
    /// A gradient, or its sum, does not fit the fixed-point range.
    #[error("gradient {index} is {value}: its sum passes the fixed-point range of ±{limit}")]
    OutOfRange {
        /// Place in the flat buffer.
        index: usize,
        /// The value that could not be added.
        value: f32,
        /// Largest sum that one member may hold.
        limit: f64,
    },
    /// The loss is NaN, infinite, or out of range.
    #[error("the loss of a micro-batch is {0}")]
    Loss(f64),
}

/// What the members of a gang all-reduce by summing, element by element.
#[derive(Debug)]
pub enum ReduceBuffer<'a> {
    /// 64-bit fixed-point integers, 8 bytes a parameter.
    Exact(&'a mut [i64]),
    /// 32-bit floats, 4 bytes a parameter.
    F32(&'a mut [f32]),
}

/// The sums of a step beside its gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Sum of the losses of all labelled tokens, in nats.
    pub loss: f64,
    /// Tokens that bear a label.
    pub labelled_tokens: u64,
    /// All tokens.
    pub tokens: u64,
}

enum Values {
    Exact(Vec<i64>),
    F32(Vec<f32>),
}

/// Adds up micro-batches, and holds the sum over all members after the caller's all-reduce.
pub struct Accumulator {
    values: Values,
    parameters: usize,
    /// Sum of one member's values, exclusive, so that the sum over all members fits 63 bits.
    limit: i64,
}

/// `nats · 2^36`, rounded to nearest, ties to even; nothing when it is not finite or past 2^62.
pub fn to_fixed(nats: f64) -> Option<i64> {
    let scaled = nats * SCALE;
    (scaled.abs() < (1i64 << 62) as f64).then(|| round(scaled) as i64)
}

/// The value of an exact sum.
pub fn from_fixed(sum: i64) -> f64 {
    sum as f64 / SCALE
}

/// Round to nearest, ties to even, without a call into libm: adding 1.5·2^52 leaves no bits behind the point.
/// From 2^51 on, a value that came from an f32 is an integer already.
#[inline(always)]
fn round(x: f64) -> f64 {
    const MAGIC: f64 = (3u64 << 51) as f64;
    if x.abs() < (1u64 << 51) as f64 { (x + MAGIC) - MAGIC } else { x }
}

#[inline(always)]
fn add_exact_body(sums: &mut [i64], gradients: &[f32], limit: i64) -> bool {
    let bound = limit as f64;
    let mut ok = true;
    for (sum, &gradient) in sums.iter_mut().zip(gradients) {
        let scaled = f64::from(gradient) * SCALE;
        // False for NaN too.
        ok &= scaled.abs() < bound;
        let next = sum.wrapping_add(round(scaled) as i64);
        ok &= next < limit && next > -limit;
        *sum = next;
    }
    ok
}

/// The same loop compiled for AVX-512, which has the conversion of eight f64 to i64: same operations, same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn add_exact_avx512(sums: &mut [i64], gradients: &[f32], limit: i64) -> bool {
    add_exact_body(sums, gradients, limit)
}

fn add_exact(sums: &mut [i64], gradients: &[f32], limit: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        // SAFETY: the three features that the function is compiled for were just detected.
        return unsafe { add_exact_avx512(sums, gradients, limit) };
    }
    add_exact_body(sums, gradients, limit)
}

impl Accumulator {
    /// An empty accumulator for `parameters` gradients and `control_words` words of the caller's.
    ///
    /// `exact` chooses 64-bit integers over f32; `max_members` is the largest gang whose sums must fit.
    pub fn new(parameters: usize, control_words: usize, exact: bool, max_members: u32) -> Self {
        let len = parameters + SUMS + control_words;
        let values = if exact { Values::Exact(vec![0; len]) } else { Values::F32(vec![0.0; len]) };
        // At least two, so that a sum below the limit plus a value below it cannot wrap.
        let members = i64::from(max_members.max(2));
        Self { values, parameters, limit: i64::MAX / members }
    }

    /// Sets everything to zero, control words too.
    pub fn clear(&mut self) {
        match &mut self.values {
            Values::Exact(values) => values.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0)),
            Values::F32(values) => values.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0)),
        }
    }

    /// Adds one micro-batch: gradients summed over its tokens (not their mean), its loss sum in nats, its token counts.
    ///
    /// # Errors
    /// When a value is not finite or a sum leaves its range; the accumulator is then no longer usable for this step.
    pub fn add(&mut self, gradients: &[f32], batch: Totals) -> Result<(), AddError> {
        assert_eq!(gradients.len(), self.parameters, "one gradient for each parameter of the layout");
        let (limit, parameters) = (self.limit, self.parameters);
        let loss = to_fixed(batch.loss).ok_or(AddError::Loss(batch.loss))?;
        let ok = match &mut self.values {
            Values::Exact(values) => {
                let (sums, rest) = values.split_at_mut(parameters);
                rest[0] += loss;
                rest[1] += batch.labelled_tokens as i64;
                rest[2] += batch.tokens as i64;
                let chunks = sums.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK));
                let ok = chunks
                    .map(|(sums, gradients)| add_exact(sums, gradients, limit))
                    .reduce(|| true, |a, b| a & b);
                if !(rest[0] > -limit && rest[0] < limit) {
                    return Err(AddError::Loss(batch.loss));
                }
                ok
            }
            Values::F32(values) => {
                let (sums, rest) = values.split_at_mut(parameters);
                rest[0] += batch.loss as f32;
                rest[1] += batch.labelled_tokens as f32;
                rest[2] += batch.tokens as f32;
                let chunks = sums.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK));
                chunks.map(|(sums, gradients)| add_f32(sums, gradients)).reduce(|| true, |a, b| a & b)
            }
        };
        if ok { Ok(()) } else { Err(self.first_fault(gradients)) }
    }

    /// Names the first value that spoiled the sums.
    fn first_fault(&self, gradients: &[f32]) -> AddError {
        let bound = from_fixed(self.limit);
        if let Some(index) = gradients.iter().position(|g| !g.is_finite()) {
            return AddError::NotFinite { index, value: gradients[index] };
        }
        let index = match &self.values {
            Values::Exact(values) => gradients.iter().zip(values).position(|(&g, &sum)| {
                f64::from(g).abs() >= bound || sum >= self.limit || sum <= -self.limit
            }),
            Values::F32(values) => values[..self.parameters].iter().position(|sum| !sum.is_finite()),
        };
        let index = index.unwrap_or_default();
        let limit = if matches!(self.values, Values::Exact(_)) { bound } else { f64::from(f32::MAX) };
        AddError::OutOfRange { index, value: gradients[index], limit }
    }

    /// The whole buffer, for the all-reduce.
    pub fn buffer(&mut self) -> ReduceBuffer<'_> {
        match &mut self.values {
            Values::Exact(values) => ReduceBuffer::Exact(values),
            Values::F32(values) => ReduceBuffer::F32(values),
        }
    }

    /// Number of control words.
    pub fn control_words(&self) -> usize {
        let len = match &self.values {
            Values::Exact(values) => values.len(),
            Values::F32(values) => values.len(),
        };
        len - self.parameters - SUMS
    }

    /// Sets this member's control word; after the all-reduce the word is the sum over members.
    pub fn set_control(&mut self, index: usize, word: u32) {
        assert!(index < self.control_words(), "control word {index} was not reserved");
        assert!(word < CONTROL_LIMIT, "control word {index} is {word}; it must stay below 2^24");
        let at = self.parameters + SUMS + index;
        match &mut self.values {
            Values::Exact(values) => values[at] = i64::from(word),
            Values::F32(values) => values[at] = word as f32,
        }
    }

    /// A control word as it stands in the buffer: the sum over members once it was reduced.
    pub fn control(&self, index: usize) -> u64 {
        assert!(index < self.control_words(), "control word {index} was not reserved");
        let at = self.parameters + SUMS + index;
        match &self.values {
            Values::Exact(values) => values[at].max(0) as u64,
            Values::F32(values) => values[at] as u64,
        }
    }

    /// Loss and token counts as they stand in the buffer.
    pub fn totals(&self) -> Totals {
        let at = self.parameters;
        match &self.values {
            Values::Exact(values) => Totals {
                loss: from_fixed(values[at]),
                labelled_tokens: values[at + 1].max(0) as u64,
                tokens: values[at + 2].max(0) as u64,
            },
            Values::F32(values) => Totals {
                loss: f64::from(values[at]),
                labelled_tokens: values[at + 1] as u64,
                tokens: values[at + 2] as u64,
            },
        }
    }

    /// Writes the mean gradient, each sum divided once by `divisor`, and returns the sum of its squares.
    ///
    /// The squares are added in one order (fixed chunks, eight lanes each), whatever the number of threads;
    /// `partials` is scratch, one value a chunk.
    pub fn mean_into(&self, divisor: f64, mean: &mut [f32], partials: &mut Vec<f64>) -> f64 {
        partials.resize(mean.len().div_ceil(CHUNK), 0.0);
        match &self.values {
            Values::Exact(values) => {
                means(&values[..self.parameters], |sum| from_fixed(sum) / divisor, mean, partials);
            }
            Values::F32(values) => {
                means(&values[..self.parameters], |sum| f64::from(sum) / divisor, mean, partials);
            }
        }
        partials.iter().sum()
    }
}

/// One pass: each sum's mean, and per chunk the sum of the means' squares.
fn means<T: Copy + Sync>(
    sums: &[T],
    mean_of: impl Fn(T) -> f64 + Sync,
    mean: &mut [f32],
    squares: &mut [f64],
) {
    let chunks = mean.par_chunks_mut(CHUNK).zip(sums.par_chunks(CHUNK)).zip(squares.par_iter_mut());
    chunks.for_each(|((mean, sums), squares)| {
        for (mean, &sum) in mean.iter_mut().zip(sums) {
            *mean = mean_of(sum) as f32;
        }
        *squares = sum_of_squares(mean);
    });
}

fn add_f32(sums: &mut [f32], gradients: &[f32]) -> bool {
    let mut ok = true;
    for (sum, &gradient) in sums.iter_mut().zip(gradients) {
        *sum += gradient;
        ok &= sum.is_finite();
    }
    ok
}

/// Sum of squares in f64, eight running sums that are added at the end: the order is part of the result.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (rows, rest) = values.as_chunks::<8>();
    for row in rows {
        for (lane, &value) in lanes.iter_mut().zip(row) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value) * f64::from(value);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(loss: f64) -> Totals {
        Totals { loss, labelled_tokens: 3, tokens: 5 }
    }

    fn exact(accumulator: &mut Accumulator) -> Vec<i64> {
        match accumulator.buffer() {
            ReduceBuffer::Exact(values) => values.to_vec(),
            ReduceBuffer::F32(_) => panic!("expected exact sums"),
        }
    }

    #[test]
    fn values_round_to_nearest_even() {
        let unit = 1.0 / SCALE;
        for (nats, sum) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.25, 3), (-3.75, -4)] {
            assert_eq!(to_fixed(nats * unit), Some(sum), "{nats}");
        }
        assert_eq!(to_fixed(f64::NAN), None);
        assert_eq!(to_fixed(f64::INFINITY), None);
        assert_eq!(to_fixed(1e9), None);
    }

    #[test]
    fn the_buffer_holds_gradients_sums_and_control_words() {
        let mut accumulator = Accumulator::new(2, 1, true, 4);
        accumulator.add(&[1.0, -0.25], counts(2.0)).unwrap();
        accumulator.add(&[0.5, 0.25], counts(1.0)).unwrap();
        accumulator.set_control(0, 9);
        let one = 1i64 << SCALE_BITS;
        assert_eq!(exact(&mut accumulator), [one + one / 2, 0, 3 * one, 6, 10, 9]);
        assert_eq!(accumulator.totals(), Totals { loss: 3.0, labelled_tokens: 6, tokens: 10 });
        assert_eq!(accumulator.control(0), 9);
        let mut mean = [0.0; 2];
        let squares = accumulator.mean_into(6.0, &mut mean, &mut Vec::new());
        assert_eq!(mean, [0.25, 0.0]);
        assert_eq!(squares, 0.0625);
    }

    #[test]
    fn what_is_not_finite_or_too_large_is_named() {
        let mut accumulator = Accumulator::new(3, 0, true, 4);
        let error = accumulator.add(&[0.0, f32::NAN, 0.0], counts(0.0)).unwrap_err();
        assert!(matches!(error, AddError::NotFinite { index: 1, .. }), "{error}");
        let mut accumulator = Accumulator::new(3, 0, true, 4);
        let error = accumulator.add(&[0.0, 0.0, 1e8], counts(0.0)).unwrap_err();
        assert!(matches!(error, AddError::OutOfRange { index: 2, .. }), "{error}");
        let mut accumulator = Accumulator::new(1, 0, true, 4);
        accumulator.add(&[3e7], counts(0.0)).unwrap();
        let error = accumulator.add(&[3e7], counts(0.0)).unwrap_err();
        assert!(matches!(error, AddError::OutOfRange { index: 0, .. }), "{error}");
        let mut accumulator = Accumulator::new(1, 0, true, 4);
        assert_eq!(
            accumulator.add(&[0.0], counts(f64::INFINITY)).unwrap_err(),
            AddError::Loss(f64::INFINITY)
        );
        let mut accumulator = Accumulator::new(1, 0, false, 4);
        accumulator.add(&[3e38], counts(0.0)).unwrap();
        let error = accumulator.add(&[3e38], counts(0.0)).unwrap_err();
        assert!(matches!(error, AddError::OutOfRange { index: 0, .. }), "{error}");
    }

    #[test]
    fn f32_sums_carry_the_same_words() {
        let mut accumulator = Accumulator::new(2, 2, false, 4);
        accumulator.add(&[1.0, -0.25], counts(2.0)).unwrap();
        accumulator.set_control(1, CONTROL_LIMIT - 1);
        assert_eq!(accumulator.control(1), u64::from(CONTROL_LIMIT - 1));
        assert_eq!(accumulator.totals(), counts(2.0));
        accumulator.clear();
        assert_eq!(accumulator.totals(), Totals { loss: 0.0, labelled_tokens: 0, tokens: 0 });
    }

    proptest! {
        #[test]
        fn order_and_members_do_not_matter(
            batches in prop::collection::vec(prop::collection::vec(-1e4f32..1e4, 7), 1..6),
            cut in 0usize..6,
        ) {
            let mut whole = Accumulator::new(7, 0, true, 4);
            for batch in &batches {
                whole.add(batch, counts(1.0)).unwrap();
            }
            let cut = cut.min(batches.len());
            let (mut one, mut two) = (Accumulator::new(7, 0, true, 4), Accumulator::new(7, 0, true, 4));
            for batch in batches[cut..].iter().rev() {
                one.add(batch, counts(1.0)).unwrap();
            }
            for batch in batches[..cut].iter().rev() {
                two.add(batch, counts(1.0)).unwrap();
            }
            let sum: Vec<i64> = exact(&mut one).iter().zip(exact(&mut two)).map(|(a, b)| a + b).collect();
            prop_assert_eq!(exact(&mut whole), sum);
        }

        #[test]
        fn rounding_is_ieee_ties_to_even(gradient in -1e7f32..1e7, tiny in -1e-9f32..1e-9) {
            for value in [gradient, tiny] {
                let mut sums = [0i64];
                let mut plain = [0i64];
                prop_assert!(add_exact(&mut sums, &[value], i64::MAX / 2));
                prop_assert!(add_exact_body(&mut plain, &[value], i64::MAX / 2));
                prop_assert_eq!(sums, plain);
                prop_assert_eq!(sums[0], (f64::from(value) * SCALE).round_ties_even() as i64);
            }
        }
    }
}
