//! The last norm, the output head and the loss, over chunks of labelled tokens: whole logits are never held.

use candle_core::Tensor;

use super::ModelError;
use crate::linear::FrozenLinear;
use crate::ops::rms_norm::Weight;
use crate::ops::{Scope, cross_entropy, into_vec, matrix, rms_norm, view};

const OP: &str = "loss";

/// Logits that are held at once (8 MB): small enough for a shared cache, enough rows to keep the products busy.
const CHUNK_LOGITS: usize = 2 << 20;
/// Fewest labelled tokens of a chunk.
const FEWEST_ROWS: usize = 48;

/// The output head.
#[derive(Debug)]
pub(crate) struct Head {
    /// Weight of the last norm.
    pub norm: Vec<f32>,
    /// `[V, H]`; shared with the embedding where they are tied.
    pub linear: FrozenLinear,
    /// Added to the mean square in the norm.
    pub eps: f32,
}

impl Head {
    fn chunk(&self) -> usize {
        (CHUNK_LOGITS / self.linear.out_features).max(FEWEST_ROWS)
    }

    /// Logits of some rows of `x` `[T, H]`, `[rows, V]`.
    pub fn logits(&self, x: &Tensor, rows: &[u32], scope: Scope) -> Result<Vec<f32>, ModelError> {
        let (h, _, _) = self.normed(x, rows, scope)?;
        let mut logits = vec![0.0; rows.len() * self.linear.out_features];
        self.linear.project(&view(OP, &h)?, &mut logits, scope);
        Ok(logits)
    }

    /// The sum of the cross-entropy of `rows` of `x`, whose successors are `targets`.
    pub fn loss(&self, x: &Tensor, rows: &[u32], targets: &[u32], scope: Scope) -> Result<f64, ModelError> {
        let mut loss = 0.0;
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            let (h, gathered, rstd) = self.normed(x, rows, scope)?;
            let mut logits = scope.pool.take(rows.len() * self.linear.out_features);
            self.linear.project(&view(OP, &h)?, &mut logits, scope);
            loss += cross_entropy::forward(&logits, self.linear.out_features, targets);
            scope.pool.put(logits);
            for tensor in [h, gathered, rstd] {
                scope.pool.recycle(tensor)?;
            }
        }
        Ok(loss)
    }

    /// As [`Head::loss`], and the gradient of `x` in its place: zero where no row is labelled.
    pub fn loss_and_gradient(
        &self,
        x: Tensor,
        rows: &[u32],
        targets: &[u32],
        scope: Scope,
    ) -> Result<(f64, Tensor), ModelError> {
        let (vocabulary, hidden) = (self.linear.out_features, self.norm.len());
        let mut dx = scope.pool.take(x.elem_count());
        dx.fill(0.0);
        let mut loss = 0.0;
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            let (h, gathered, rstd) = self.normed(&x, rows, scope)?;
            let mut logits = scope.pool.take(rows.len() * vocabulary);
            self.linear.project(&view(OP, &h)?, &mut logits, scope);
            loss += cross_entropy::forward_backward(&mut logits, vocabulary, targets);
            let mut dh = into_vec(OP, h)?;
            self.linear.project_back(&logits, &mut dh, scope);
            scope.pool.put(logits);
            let dh = matrix(dh, hidden)?;
            let w = Weight::plain(&self.norm);
            let d = rms_norm::backward(&gathered, w, &rstd, &dh, None, None, scope)?;
            for (&row, d) in rows.iter().zip(view(OP, &d)?.chunks_exact(hidden)) {
                dx[row as usize * hidden..][..hidden].copy_from_slice(d);
            }
            for tensor in [dh, d, gathered, rstd] {
                scope.pool.recycle(tensor)?;
            }
        }
        scope.pool.recycle(x)?;
        Ok((loss, matrix(dx, hidden)?))
    }

    /// The norm of some rows: normed, as gathered, and the norm's rstd.
    fn normed(&self, x: &Tensor, rows: &[u32], scope: Scope) -> Result<(Tensor, Tensor, Tensor), ModelError> {
        let hidden = self.norm.len();
        let mut gathered = scope.pool.take(rows.len() * hidden);
        {
            let x = view(OP, x)?;
            for (out, &row) in gathered.chunks_exact_mut(hidden).zip(rows) {
                out.copy_from_slice(&x[row as usize * hidden..][..hidden]);
            }
        }
        let gathered = matrix(gathered, hidden)?;
        let (h, rstd) = rms_norm::forward(&gathered, Weight::plain(&self.norm), self.eps, None, scope)?;
        Ok((h, gathered, rstd))
    }
}
