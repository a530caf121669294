//! A weight matrix in memory once, in f32 or bf16, as the products of both passes read it.

use lorafleet_spec::job::Precision;
use rayon::prelude::*;

use super::aligned::Aligned;
use super::bf16;
use super::kernel::PANEL;
use super::transpose::{self, Block};

/// A weight `[out, in]`.
///
/// It lies in panels of [`PANEL`] rows, transposed: a panel is `[in, PANEL]` values, or `[in/2, PANEL]` pairs of bf16;
/// what is missing of the last panel, and of the last pair, is zero. The forward pass multiplies panels as they lie,
/// the backward pass transposes a block at a time into a cache.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    panels: Aligned,
    rows: usize,
    columns: usize,
    precision: Precision,
}

impl Weights {
    /// Packs a row-major weight `[rows = out, columns = in]`.
    pub fn new(data: &[f32], rows: usize, columns: usize, precision: Precision) -> Self {
        assert_eq!(data.len(), rows * columns, "a [{rows}, {columns}] weight");
        Self::pack(rows, columns, precision, |panel, depth, out| {
            for (i, row) in data[panel * PANEL * columns..].chunks_exact(columns).take(PANEL).enumerate() {
                for (value, &x) in out[i..].iter_mut().step_by(PANEL).zip(&row[depth..]).take(2) {
                    *value = x;
                }
            }
        })
    }

    /// Packs a weight that is stored transposed, row-major `[columns = in, rows = out]`.
    pub fn transposed(data: &[f32], rows: usize, columns: usize, precision: Precision) -> Self {
        assert_eq!(data.len(), rows * columns, "a [{columns}, {rows}] weight");
        Self::pack(rows, columns, precision, |panel, depth, out| {
            let first = panel * PANEL;
            let width = (rows - first).min(PANEL);
            for (row, out) in (depth..columns).zip(out.chunks_exact_mut(PANEL)) {
                out[..width].copy_from_slice(&data[row * rows + first..][..width]);
            }
        })
    }

    /// `fill(panel, depth, out)` writes inputs `depth` and `depth + 1` of a panel's rows into two lines of zeros.
    fn pack(
        rows: usize,
        columns: usize,
        precision: Precision,
        fill: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Self {
        let depth = words(precision, columns);
        let mut panels = Aligned::zeros(rows.div_ceil(PANEL) * depth * PANEL);
        panels.par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each(|(panel, out)| {
            let lines = if precision == Precision::F32 { 2 } else { 1 };
            for (i, out) in out.chunks_mut(lines * PANEL).enumerate() {
                let mut pair = [0f32; 2 * PANEL];
                fill(panel, 2 * i, &mut pair);
                match precision {
                    Precision::F32 => out.copy_from_slice(&pair[..out.len()]),
                    Precision::Bf16 => {
                        for (i, half) in bf16::halves(out).iter_mut().enumerate() {
                            *half = bf16::round(pair[i % 2 * PANEL + i / 2]);
                        }
                    }
                }
            }
        });
        Self { panels, rows, columns, precision }
    }

    /// Its rows: the width of the layer's output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its columns: the width of the layer's input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// In what numbers it is held and multiplied; sums are always f32.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Reads one row, of length `columns`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.panel(row / PANEL)[row % PANEL..];
        let words = panel.iter().step_by(PANEL);
        match self.precision {
            Precision::F32 => out.iter_mut().zip(words).for_each(|(out, &x)| *out = x),
            Precision::Bf16 => {
                for (out, word) in out.chunks_mut(2).zip(words) {
                    let mut word = [*word];
                    out.iter_mut()
                        .zip(bf16::halves(&mut word))
                        .for_each(|(out, half)| *out = bf16::widen(*half));
                }
            }
        }
    }

    /// A panel's words, and those of the panels that follow.
    pub(super) fn panel(&self, panel: usize) -> &[f32] {
        &self.panels[panel * words(self.precision, self.columns) * PANEL..]
    }

    /// Unpacks a block of the matrix itself: `out` gets lines of [`PANEL`] columns from `panel · PANEL` on, one for each
    /// of the words `first..first + len` along its rows.
    pub(super) fn unpack(&self, panel: usize, first: usize, len: usize, out: &mut [f32]) {
        // Lines of a stored panel that hold these columns, and rows in a word.
        let per_word = per_word(self.precision);
        let line = panel * PANEL / per_word;
        let lines = (words(self.precision, self.columns) - line).min(PANEL / per_word);
        let (mut row, end) = (first * per_word, (first + len) * per_word);
        let mut out = out;
        while row < end {
            let within = row % PANEL;
            let count = (PANEL - within).min(end - row);
            let words = &self.panel(row / PANEL)[line * PANEL + within..];
            let block = Block { words, stride: PANEL, rows: lines, columns: count };
            match self.precision {
                Precision::F32 => transpose::words(block, out, PANEL),
                Precision::Bf16 => transpose::pairs(block, out, PANEL),
            }
            out = &mut out[count / per_word * PANEL..];
            row += count;
        }
    }
}

/// 32-bit words of that many values.
pub(super) const fn words(precision: Precision, len: usize) -> usize {
    len.div_ceil(per_word(precision))
}

/// Values in a word.
const fn per_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::noise;
    use super::*;

    #[test]
    fn rows_come_back_from_both_layouts() {
        for (rows, columns) in [(1, 1), (70, 33), (64, 128), (130, 7)] {
            let data = noise(rows * columns, 1);
            let stored: Vec<f32> =
                (0..rows * columns).map(|at| data[at % rows * columns + at / rows]).collect();
            for precision in [Precision::F32, Precision::Bf16] {
                let packed = [
                    Weights::new(&data, rows, columns, precision),
                    Weights::transposed(&stored, rows, columns, precision),
                ];
                for (weights, row) in packed.iter().flat_map(|w| (0..rows).map(move |row| (w, row))) {
                    let mut got = vec![f32::NAN; columns];
                    weights.read_row(row, &mut got);
                    for (got, &want) in got.iter().zip(&data[row * columns..]) {
                        let rounded = bf16::widen(bf16::round(want));
                        assert_eq!(*got, if precision == Precision::F32 { want } else { rounded });
                    }
                }
            }
        }
    }
}
