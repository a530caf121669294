//! bitsandbytes' dynamic 8-bit code tables (arXiv:1511.04561, arXiv:2110.02861): numbers in [−1, 1] ⇄ bytes.

use std::sync::LazyLock;

/// A table of 256 values, and how to find the nearest.
#[derive(Debug)]
pub(super) struct DynamicMap {
    /// Ascending, as `bitsandbytes.functional.create_dynamic_map` makes them, bit for bit.
    pub values: [f32; 256],
    /// Half way to the next value; the last one's is out of reach.
    middles: [f32; 256],
    /// Code of the least number that begins with these 16 bits. No such interval holds two middles.
    starts: Box<[u8]>,
}

/// Exponents: a decade each, whose number of values doubles with every step towards 1.
const DECADES: u32 = 7;

impl DynamicMap {
    /// For what has a sign.
    pub fn signed() -> &'static Self {
        static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
        &MAP
    }

    /// For what is never below 0: twice as fine.
    pub fn unsigned() -> &'static Self {
        static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));
        &MAP
    }

    fn new(signed: bool) -> Self {
        let values = table(signed);
        let mut middles = [f32::INFINITY; 256];
        for (middle, pair) in middles.iter_mut().zip(values.windows(2)) {
            *middle = (pair[0] + pair[1]) * 0.5;
        }
        let least = |prefix: u32| {
            let rest = if prefix >> 15 == 1 { 0xffff } else { 0 };
            let least = f32::from_bits(prefix << 16 | rest);
            middles[..255].partition_point(|&middle| middle < least) as u8
        };
        Self { values, middles, starts: (0..1 << 16).map(least).collect() }
    }

    /// The code of the value nearest to `x`, the lower one of two.
    #[inline(always)]
    pub fn code(&self, x: f32) -> u8 {
        let start = self.starts[(x.to_bits() >> 16) as usize];
        start + u8::from(x > self.middles[usize::from(start)])
    }
}

/// The 256 values: for each decade up to 1 the centres of evenly spaced steps, their negatives, 0 and 1.
fn table(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let items = if signed { 1usize << decade } else { 2usize << decade };
        // 1e-6 … 1, each the f32 nearest to the decimal number.
        let scale = libm::pow(10.0, f64::from(decade) - f64::from(DECADES - 1)) as f32;
        let bounds = linspace(items + 1);
        let centres = bounds.windows(2).map(|pair| scale * ((pair[0] + pair[1]) / 2.0));
        values.extend(centres.flat_map(|value| if signed { vec![value, -value] } else { vec![value] }));
    }
    // What is left of the 256 is 0, as in the original.
    values.resize(256, 0.0);
    values.sort_by(f32::total_cmp);
    values.try_into().expect("resized to 256")
}

/// `torch.linspace(0.1, 1, count)` in f32: from both ends to the middle, with fused multiply-adds.
fn linspace(count: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (count - 1) as f32;
    let at = |i: usize| {
        if i < count / 2 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((count - 1 - i) as f32, end)
        }
    };
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_interval_holds_two_middles() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            for prefix in 0u32..1 << 16 {
                let rest = if prefix >> 15 == 1 { 0 } else { 0xffff };
                let greatest = f32::from_bits(prefix << 16 | rest);
                if greatest.abs() <= 1.01 {
                    let code = map.middles[..255].partition_point(|&middle| middle < greatest);
                    assert!(code <= usize::from(map.starts[prefix as usize]) + 1, "{greatest}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_nearest_value_is_found(x in -1.0f32..=1.0, decade in 0i32..8) {
            let x = x * 10f32.powi(-decade);
            for (map, x) in [(DynamicMap::signed(), x), (DynamicMap::unsigned(), x.abs())] {
                let distance = |value: f32| (f64::from(value) - f64::from(x)).abs();
                let found = distance(map.values[usize::from(map.code(x))]);
                let least = map.values.iter().map(|&value| distance(value)).fold(f64::MAX, f64::min);
                prop_assert!(found <= least * (1.0 + 1e-6), "{x}: {found}, not {least}");
            }
        }

        #[test]
        fn a_value_is_its_own_code(place in 0usize..256) {
            for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
                prop_assert_eq!(map.values[usize::from(map.code(map.values[place]))], map.values[place]);
            }
        }
    }
}
