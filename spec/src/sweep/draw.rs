//! Random draws by number: each a function of (seed, path, child, redraw), never of the draws before it.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use sha2::{Digest as _, Sha256};

/// Names this rule; part of the generator's key.
const RULE: &[u8] = b"lorafleet sweep 1\0";

/// What a child's value of one parameter is drawn from.
pub(super) fn generator(seed: u64, path: &str, child: u32, redraw: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(RULE);
    hasher.update(seed.to_le_bytes());
    hasher.update(child.to_le_bytes());
    hasher.update(redraw.to_le_bytes());
    hasher.update(path.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// A number in [0, 1), each multiple of 2⁻⁵³ equally likely.
pub(super) fn unit(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The nearest number of four significant digits: what people can read, type and compare.
pub(super) fn rounded(number: f64) -> f64 {
    // What was printed as a number is one.
    format!("{number:.3e}").parse().unwrap_or(number)
}
