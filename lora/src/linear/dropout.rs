//! Dropout masks by a counter-based generator (Philox4x32-10, Salmon et al. 2011): a value's fate depends on its names only.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::TokenKey;
use crate::ops::task_rows;
use crate::params::Dropout;

/// The mask of one module in one step.
///
/// The generator's key is the first 8 bytes of the sha256 of (seed, step, module); its counter is (column / 4, token,
/// example, 0). A value is kept when its word reaches p·2³², and then divided by 1 − p, as PyTorch does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mask {
    key: [u32; 2],
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// The mask of a module; nothing where nothing is dropped.
    pub fn of(dropout: Option<Dropout>, module: &str) -> Option<Self> {
        let Dropout { p, seed, step } = dropout?;
        if p <= 0.0 {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(b"lorafleet dropout 1\0");
        hash.update(seed.to_le_bytes());
        hash.update(step.to_le_bytes());
        hash.update(module.as_bytes());
        let digest = hash.finalize();
        let word =
            |at: usize| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
        let threshold = (f64::from(p) * f64::from(1u32 << 31) * 2.0) as u32;
        Some(Self { key: [word(0), word(4)], threshold, scale: 1.0 / (1.0 - p) })
    }

    /// `out = x ⊙ mask / (1 − p)`, rows of `columns`, one key each.
    pub fn apply(&self, x: &[f32], columns: usize, keys: &[TokenKey], out: &mut [f32]) {
        let rows = task_rows(columns);
        let chunks = out.par_chunks_mut(rows * columns).zip(x.par_chunks(rows * columns));
        chunks.zip(keys.par_chunks(rows)).for_each(|((out, x), keys)| {
            let rows = out.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
            for ((out, x), key) in rows.zip(keys) {
                out.copy_from_slice(x);
                self.drop_row(out, *key);
            }
        });
    }

    /// `x = x ⊙ mask / (1 − p)`, in place.
    pub fn apply_in_place(&self, x: &mut [f32], columns: usize, keys: &[TokenKey]) {
        let rows = task_rows(columns);
        x.par_chunks_mut(rows * columns).zip(keys.par_chunks(rows)).for_each(|(x, keys)| {
            for (x, key) in x.chunks_exact_mut(columns).zip(keys) {
                self.drop_row(x, *key);
            }
        });
    }

    fn drop_row(&self, row: &mut [f32], key: TokenKey) {
        for (block, values) in row.chunks_mut(4 * LANES).enumerate() {
            let words = philox((block * LANES) as u32, key, self.key);
            for (i, value) in values.iter_mut().enumerate() {
                let kept = words[i % 4][i / 4] >= self.threshold;
                *value = if kept { *value * self.scale } else { 0.0 };
            }
        }
    }
}

/// Counters that are turned into words side by side, in vector registers.
const LANES: usize = 16;

/// The four words of the counters `(first + lane, token, example, 0)`.
fn philox(first: u32, key: TokenKey, [mut k0, mut k1]: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut c: [[u32; LANES]; 4] = [[0; LANES], [key.token; LANES], [key.example; LANES], [0; LANES]];
    for (lane, counter) in c[0].iter_mut().enumerate() {
        *counter = first + lane as u32;
    }
    for _ in 0..10 {
        // By index: the four words of a lane are read and written together.
        #[allow(clippy::needless_range_loop)]
        for lane in 0..LANES {
            let a = 0xD251_1F53 * u64::from(c[0][lane]);
            let b = 0xCD9E_8D57 * u64::from(c[2][lane]);
            let (next0, next2) = ((b >> 32) as u32 ^ c[1][lane] ^ k0, (a >> 32) as u32 ^ c[3][lane] ^ k1);
            (c[1][lane], c[3][lane]) = (b as u32, a as u32);
            (c[0][lane], c[2][lane]) = (next0, next2);
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(p: f32, step: u64, module: &str) -> Mask {
        Mask::of(Some(Dropout { p, seed: 3, step }), module).unwrap()
    }

    fn key(example: u32, token: u32) -> TokenKey {
        TokenKey { example, token }
    }

    #[test]
    fn words_are_philox() {
        // Random123's known answers: counter and key all zeros, all ones.
        let words = philox(0, TokenKey::default(), [0, 0]);
        assert_eq!(words.map(|w| w[0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn a_share_p_is_dropped_and_the_mean_kept() {
        let x = vec![1.0; 4000 * 25];
        let keys: Vec<_> = (0..25).map(|token| key(1, token)).collect();
        let mut out = vec![f32::NAN; x.len()];
        mask(0.2, 1, "q").apply(&x, 4000, &keys, &mut out);
        let dropped = out.iter().filter(|&&x| x == 0.0).count() as f64 / out.len() as f64;
        assert!((dropped - 0.2).abs() < 5e-3, "{dropped}");
        assert!(out.iter().all(|&x| x == 0.0 || x == 1.25));
        let mut again = x.clone();
        mask(0.2, 1, "q").apply_in_place(&mut again, 4000, &keys);
        assert_eq!(out, again);
    }

    #[test]
    fn masks_follow_the_token_and_nothing_else() {
        let dropped = |mask: Mask, keys: &[TokenKey]| {
            let mut x = vec![1.0; 70 * keys.len()];
            mask.apply_in_place(&mut x, 70, keys);
            x
        };
        let keys = [key(0, 0), key(0, 1), key(1, 0)];
        let all = dropped(mask(0.5, 1, "q"), &keys);
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(dropped(mask(0.5, 1, "q"), &[*key]), all[70 * i..70 * (i + 1)], "in any company");
        }
        assert_ne!(all[..70], all[70..140]);
        assert_ne!(all[..70], all[140..]);
        assert_ne!(dropped(mask(0.5, 2, "q"), &keys), all);
        assert_ne!(dropped(mask(0.5, 1, "k"), &keys), all);
        assert_eq!(Mask::of(Some(Dropout { p: 0.0, seed: 1, step: 1 }), "q"), None);
    }
}
