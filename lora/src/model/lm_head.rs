//! The last norm, the output head and the loss, over chunks of labelled tokens: whole logits are never held.

use std::ops::Range;

use candle_core::Tensor;

use super::ModelError;
use super::columns::width;
use super::parameters::{LinearId, NormId};
use super::pass::Pass;
use super::projection::{Lows, Projection};
use crate::linear::{Into, Rows};
use crate::ops::cross_entropy::softcap;
use crate::ops::{OpError, cross_entropy, into_vec, matrix, view};

const OP: &str = "loss";

/// Logits that are held at once (38 MB): enough rows of a large vocabulary that reading the weight twice for each chunk
/// costs little.
const CHUNK_LOGITS: usize = 9 << 20;
/// Fewest labelled tokens of a chunk.
const FEWEST_ROWS: usize = 96;
/// The same where the head is trained: each chunk adds to the gradient of all of it.
const FEWEST_ROWS_OF_TRAINED: usize = 512;

/// The output head of a language model.
#[derive(Debug)]
pub(crate) struct LmHead {
    /// Of the last block's output.
    pub norm: Option<NormId>,
    /// `[V, H]`; shared with the embedding where they are tied.
    pub linear: LinearId,
    /// c of `c·tanh(logit / c)`.
    pub softcap: Option<f32>,
    /// V.
    pub vocabulary: usize,
}

/// Rows of the last block's output on their way to logits.
struct Forwarded {
    /// What the output layer saw, where the last norm made it, with the norm's statistics.
    normed: Option<(Tensor, Tensor)>,
    logits: Vec<f32>,
    lows: Lows,
}

impl LmHead {
    /// The output layer.
    fn projection(&self) -> Projection {
        Projection::separate(vec![self.linear])
    }

    /// Rows that are computed at once.
    fn chunks(&self, rows: usize, trained: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let fewest = if trained { FEWEST_ROWS_OF_TRAINED } else { FEWEST_ROWS };
        let chunk = (CHUNK_LOGITS / self.vocabulary).max(fewest);
        (0..rows).step_by(chunk).map(move |first| first..(first + chunk).min(rows))
    }

    /// Logits of each row of `x` `[L, H]`, `[L, V]`.
    pub fn logits(&self, x: &Tensor, pass: &Pass) -> Result<Vec<f32>, ModelError> {
        let Forwarded { normed, mut logits, lows } = self.forward(x, pass)?;
        if let Some(cap) = self.softcap {
            softcap(&mut logits, cap);
        }
        recycle(normed, lows, pass)?;
        Ok(logits)
    }

    /// The sum of the cross-entropy of the rows of `x`, whose successors are `targets`.
    pub fn loss(&self, x: &Tensor, targets: &[u32], pass: &Pass) -> Result<f64, ModelError> {
        let mut loss = 0.0;
        for rows in self.chunks(targets.len(), pass.bound.trains(self.linear)) {
            let of = chunk_of(pass.rows, &rows);
            let pass = &Pass { rows: &of, ..*pass };
            let forwarded = self.forward(&slice(x, &rows)?, pass)?;
            loss += cross_entropy::forward(&forwarded.logits, self.vocabulary, &targets[rows], self.softcap);
            pass.scope.pool.put(forwarded.logits);
            recycle(forwarded.normed, forwarded.lows, pass)?;
        }
        Ok(loss)
    }

    /// As [`LmHead::loss`]; the gradients of what is trained of the head, at their places, and that of `x`, if it is
    /// wanted.
    pub fn loss_and_gradient(
        &self,
        x: Tensor,
        targets: &[u32],
        wanted: bool,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<(f64, Option<Tensor>), ModelError> {
        let hidden = width(&x)?;
        let wanted = wanted || pass.trains_norm(self.norm);
        if let Some(norm) = self.norm {
            pass.norm(norm).zero(gradients);
        }
        let mut dx = wanted.then(|| pass.scope.pool.take(targets.len() * hidden));
        let mut loss = 0.0;
        for rows in self.chunks(targets.len(), pass.bound.trains(self.linear)) {
            let of = chunk_of(pass.rows, &rows);
            let pass = &Pass { rows: &of, ..*pass };
            let part = slice(&x, &rows)?;
            let into = if rows.start == 0 { Into::Overwrite } else { Into::Add };
            let mut forwarded = self.forward(&part, pass)?;
            loss += cross_entropy::forward_backward(
                &mut forwarded.logits,
                self.vocabulary,
                &targets[rows.clone()],
                self.softcap,
            );
            if let Some(d) = self.backward(&part, forwarded, wanted, gradients, into, pass)?
                && let Some(dx) = &mut dx
            {
                dx[rows.start * hidden..rows.end * hidden].copy_from_slice(&view(OP, &d)?);
                pass.scope.pool.recycle(d)?;
            }
        }
        pass.scope.pool.recycle(x)?;
        Ok((loss, dx.map(|dx| matrix(dx, hidden)).transpose()?))
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Forwarded, ModelError> {
        let normed = self.norm.map(|norm| pass.norm(norm).forward(x, None, pass.scope)).transpose()?;
        let h = normed.as_ref().map_or(x, |(h, _)| h);
        let (logits, lows) = self.projection().forward_one(h, None, pass)?;
        Ok(Forwarded { normed, logits: into_vec(OP, logits)?, lows })
    }

    /// From the gradient of the logits, in their place, to that of `x`.
    fn backward(
        &self,
        x: &Tensor,
        Forwarded { normed, logits, lows }: Forwarded,
        wanted: bool,
        gradients: &mut [f32],
        into: Into,
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let (projection, d) = (self.projection(), matrix(logits, self.vocabulary)?);
        let (dh, reduced) = projection.backward_input(&[&d], &lows, wanted, pass)?;
        if projection.is_trained(pass) {
            let h = normed.as_ref().map_or(x, |(h, _)| h);
            projection.backward_weights(&[&d], &lows, reduced, h, gradients, into, pass)?;
        }
        pass.scope.pool.recycle(d)?;
        let d = match (self.norm, &normed, dh) {
            (Some(norm), Some((_, stats)), Some(dh)) => {
                let d = pass.norm(norm).backward_add(x, stats, &dh, None, gradients, pass.scope)?;
                pass.scope.pool.recycle(dh)?;
                Some(d)
            }
            (_, _, dh) => dh,
        };
        recycle(normed, lows, pass)?;
        Ok(d)
    }
}

fn recycle(normed: Option<(Tensor, Tensor)>, lows: Lows, pass: &Pass) -> Result<(), ModelError> {
    let (h, stats) = normed.unzip();
    lows.recycle(pass.scope);
    for tensor in [h, stats].into_iter().flatten() {
        pass.scope.pool.recycle(tensor)?;
    }
    Ok(())
}

/// Whose a chunk's rows are.
fn chunk_of(all: &Rows, rows: &Range<usize>) -> Rows {
    let rows: Vec<u32> = rows.clone().map(|row| row as u32).collect();
    all.gather(&rows)
}

fn slice(x: &Tensor, rows: &Range<usize>) -> Result<Tensor, OpError> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}
