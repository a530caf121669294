//! The initial adapter, as PEFT makes it: `A` Kaiming-uniform, `B` zero, so that the adapted model starts as the base.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::params::Layout;

/// The generator of a named purpose: ChaCha8 whose key is the sha256 of the purpose, the seed and a name.
///
/// Counter-based, so that a draw depends on nothing but its name and place, never on what was drawn before it.
pub(crate) fn generator(purpose: &str, seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = Sha256::new();
    key.update(purpose.as_bytes());
    key.update([0]);
    key.update(seed.to_le_bytes());
    key.update(name.as_bytes());
    ChaCha8Rng::from_seed(key.finalize().into())
}

/// The weights of a new adapter: `A ~ U(−1/√in, 1/√in)`, which is Kaiming-uniform with a = √5; `B = 0`.
///
/// Each module draws from a generator of its own, keyed by (seed, module name), row by row.
pub fn initial_weights(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0; layout.len()];
    for module in layout.modules() {
        let mut draws = generator("lorafleet adapter init 1", seed, &module.module);
        let bound = (1.0 / (module.in_features as f64).sqrt()) as f32;
        for weight in &mut weights[module.a.clone()] {
            // 24 bits of the draw, exact in f32: a multiple of 2^-23 in [-1, 1).
            let unit = (draws.next_u32() >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0;
            *weight = unit * bound;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(modules: &[&str]) -> Layout {
        let mut layout = Layout::new();
        for module in modules {
            layout.push(module, 64, 32, 4, 1.0);
        }
        layout
    }

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let layout = layout(&["q"]);
        let weights = initial_weights(&layout, 1);
        let module = &layout.modules()[0];
        let (a, b) = (&weights[module.a.clone()], &weights[module.b.clone()]);
        assert!(b.iter().all(|&b| b == 0.0));
        assert!(a.iter().all(|a| a.abs() <= 0.125));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|a| a * a).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 0.125 * 0.125 / 3.0).abs() < 1e-3, "{variance}");
    }

    #[test]
    fn a_module_draws_the_same_in_any_company() {
        let (both, one) = (layout(&["q", "v"]), layout(&["v"]));
        let (all, alone) = (initial_weights(&both, 3), initial_weights(&one, 3));
        let (v, only) = (&both.modules()[1], &one.modules()[0]);
        assert_eq!(all[v.a.clone()], alone[only.a.clone()]);
        assert_ne!(all[v.a.clone()], all[both.modules()[0].a.clone()]);
        assert_ne!(initial_weights(&one, 4), alone);
    }
}
