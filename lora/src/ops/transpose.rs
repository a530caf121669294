//! Transposing small blocks of 32-bit words, and of pairs of bf16 within them.

/// Words of a side of the square that is transposed in registers.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 16;

/// A block to read: `rows` × `columns` words.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// Its first word, and all that follow.
    pub words: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Block<'_> {
    fn check(&self) {
        let end = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.columns };
        assert!(self.words.len() >= end, "a block to transpose");
    }
}

/// `out[column · stride + row] = block[row, column]`.
pub(crate) fn words(block: Block, out: &mut [f32], stride: usize) {
    let Block { words, stride: from, rows, columns } = block;
    block.check();
    assert!(
        columns == 0 || (stride >= rows && out.len() >= (columns - 1) * stride + rows),
        "transposed block"
    );
    #[cfg(target_arch = "x86_64")]
    let (rows_done, columns_done) = squares(rows, columns, |row, column| {
        // SAFETY: the CPU has AVX-512; a square of both lies inside, as was asserted.
        unsafe {
            let source = words.as_ptr().add(row * from + column);
            x86::words(source, from, out.as_mut_ptr().add(column * stride + row), stride);
        }
    });
    #[cfg(not(target_arch = "x86_64"))]
    let (rows_done, columns_done) = (0, 0);
    for row in 0..rows {
        for column in (if row < rows_done { columns_done } else { 0 })..columns {
            out[column * stride + row] = words[row * from + column];
        }
    }
}

/// Words are pairs of rows; they become pairs of columns: of the matrix `[2·rows, columns]`, whose element (2r, c) is
/// the first half of word (r, c) and (2r + 1, c) the second, `out[j · stride + i]` holds (i, 2j) and (i, 2j + 1).
///
/// The count of columns is even.
pub(crate) fn pairs(block: Block, out: &mut [f32], stride: usize) {
    let Block { words, stride: from, rows, columns } = block;
    block.check();
    assert!(columns.is_multiple_of(2), "columns come in pairs");
    assert!(
        columns == 0 || (stride >= 2 * rows && out.len() >= (columns / 2 - 1) * stride + 2 * rows),
        "transposed block"
    );
    #[cfg(target_arch = "x86_64")]
    let (rows_done, columns_done) = squares(rows, columns, |row, column| {
        // SAFETY: the CPU has AVX-512; a square of both lies inside, as was asserted.
        unsafe {
            let source = words.as_ptr().add(row * from + column);
            x86::pairs(source, from, out.as_mut_ptr().add(column / 2 * stride + 2 * row), stride);
        }
    });
    #[cfg(not(target_arch = "x86_64"))]
    let (rows_done, columns_done) = (0, 0);
    for row in 0..rows {
        for column in ((if row < rows_done { columns_done } else { 0 })..columns).step_by(2) {
            let pair = &words[row * from + column..][..2];
            let [a, b] = [split(pair[0]), split(pair[1])];
            let at = column / 2 * stride + 2 * row;
            out[at] = join([a[0], b[0]]);
            out[at + 1] = join([a[1], b[1]]);
        }
    }
}

/// Calls `transpose` with the first row and column of every whole square, where the CPU has AVX-512; returns how many
/// rows and columns that covers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn squares(rows: usize, columns: usize, mut transpose: impl FnMut(usize, usize)) -> (usize, usize) {
    if super::simd::level() != super::simd::Level::Avx512 {
        return (0, 0);
    }
    let (whole_rows, whole_columns) = (rows / SIDE * SIDE, columns / SIDE * SIDE);
    for row in (0..whole_rows).step_by(SIDE) {
        for column in (0..whole_columns).step_by(SIDE) {
            transpose(row, column);
        }
    }
    (whole_rows, whole_columns)
}

/// The halves of a word, in memory's order.
fn split(word: f32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// The word of two halves.
fn join([first, second]: [u16; 2]) -> f32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    f32::from_ne_bytes([a, b, c, d])
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::SIDE;

    /// Reads a square of words and transposes it: row j of the result is column j.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn square(from: *const f32, stride: usize) -> [__m512i; SIDE] {
        // SAFETY: the caller vouches for 16 words in each of 16 rows.
        let rows: [__m512i; SIDE] =
            std::array::from_fn(|row| unsafe { _mm512_loadu_si512(from.add(row * stride).cast()) });
        // Pairs of words, then of double words, then of 128-bit lanes twice.
        let a: [__m512i; SIDE] = std::array::from_fn(|i| {
            let (x, y) = (rows[i & !1], rows[i | 1]);
            if i % 2 == 0 { _mm512_unpacklo_epi32(x, y) } else { _mm512_unpackhi_epi32(x, y) }
        });
        let b: [__m512i; SIDE] = std::array::from_fn(|i| {
            let at = i & !3 | (i & 2) >> 1;
            let (x, y) = (a[at], a[at + 2]);
            if i % 2 == 0 { _mm512_unpacklo_epi64(x, y) } else { _mm512_unpackhi_epi64(x, y) }
        });
        // b[4g + c] holds, in lane l, column 4l + c of rows 4g to 4g + 3.
        let c: [__m512i; SIDE] = std::array::from_fn(|i| {
            let (half, column, pair) = (i & 1, (i >> 1) & 3, i >> 3);
            let (x, y) = (b[8 * pair + column], b[8 * pair + 4 + column]);
            if half == 0 { _mm512_shuffle_i32x4::<0x88>(x, y) } else { _mm512_shuffle_i32x4::<0xdd>(x, y) }
        });
        // c[8p + 2c + h] holds lanes h, h + 2 of row group 2p, then of 2p + 1.
        std::array::from_fn(|column| {
            let (lane, within) = (column / 4, column % 4);
            let (half, odd) = (lane & 1, lane >> 1);
            let (x, y) = (c[2 * within + half], c[8 + 2 * within + half]);
            if odd == 0 { _mm512_shuffle_i32x4::<0x88>(x, y) } else { _mm512_shuffle_i32x4::<0xdd>(x, y) }
        })
    }

    /// Transposes a square of words.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn words(from: *const f32, from_stride: usize, to: *mut f32, stride: usize) {
        // SAFETY: the caller vouches for 16 words in each of 16 rows of both.
        unsafe {
            for (row, words) in square(from, from_stride).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(row * stride).cast(), words);
            }
        }
    }

    /// Transposes a square of words, then pairs up neighbouring rows: 8 rows of 32 words.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn pairs(from: *const f32, from_stride: usize, to: *mut f32, stride: usize) {
        let mut low = [0i16; 32];
        for (i, index) in low.iter_mut().enumerate() {
            // Half i/2 of the first row, then the same of the second.
            *index = (i / 2 + 32 * (i % 2)) as i16;
        }
        let high = low.map(|index| index + 16);
        // SAFETY: both arrays are 512 bits long; the caller vouches for 16 words in each of 16 rows, and for 32 in 8.
        unsafe {
            let (low, high) =
                (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
            for (row, pair) in square(from, from_stride).as_chunks::<2>().0.iter().enumerate() {
                let to = to.add(row * stride);
                _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(pair[0], low, pair[1]));
                _mm512_storeu_si512(to.add(SIDE).cast(), _mm512_permutex2var_epi16(pair[0], high, pair[1]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_goes_to_its_place() {
        for (rows, columns) in [(1, 1), (16, 16), (64, 64), (33, 50), (17, 8), (40, 64)] {
            let (from, stride) = (columns + 3, rows + 5);
            let words: Vec<f32> = (0..rows * from).map(|i| i as f32).collect();
            let mut out = vec![-1.0; columns * stride];
            super::words(Block { words: &words, stride: from, rows, columns }, &mut out, stride);
            for (at, &word) in out.iter().enumerate() {
                let (column, row) = (at / stride, at % stride);
                let want = if row < rows { words[row * from + column] } else { -1.0 };
                assert_eq!(word, want, "{rows}×{columns}: row {row}, column {column}");
            }
        }
    }

    #[test]
    fn every_half_goes_to_its_place() {
        for (rows, columns) in [(1, 2), (16, 16), (32, 64), (9, 50), (17, 36)] {
            let (from, stride) = (columns + 2, 2 * rows + 5);
            // Small numbers, so that no word is a NaN.
            let half = |row: usize, column: usize| (row * 100 + column) as u16;
            let mut words = vec![0.0; rows * from];
            for row in 0..rows {
                for column in 0..columns {
                    words[row * from + column] = join([half(2 * row, column), half(2 * row + 1, column)]);
                }
            }
            let mut out = vec![0.0; columns / 2 * stride];
            pairs(Block { words: &words, stride: from, rows, columns }, &mut out, stride);
            for j in 0..columns / 2 {
                for i in 0..2 * rows {
                    assert_eq!(split(out[j * stride + i]), [half(i, 2 * j), half(i, 2 * j + 1)]);
                }
            }
        }
    }
}
