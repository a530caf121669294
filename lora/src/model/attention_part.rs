//! The attention part of a block: `o(attention(rope(norm(q)), rope(norm(k)), v))` within its frame.

use candle_core::Tensor;

use super::ModelError;
use super::cache::LayerCache;
use super::columns::{gather, scatter};
use super::frame::{Exit, Frame};
use super::parameters::NormId;
use super::pass::{Narrow, Pass};
use super::projection::{Lows, Projected, Projection};
use super::until::Until;
use crate::linear::Into;
use crate::ops::attention::backward::{Gradients, Saved, backward};
use crate::ops::attention::{self, Mask};
use crate::ops::rope::{Turn, rotate};
use crate::ops::{OpError, Scope};

/// One attention part of the base.
#[derive(Debug)]
pub(crate) struct AttentionPart {
    /// Norms and residual around it.
    pub frame: Frame,
    /// Queries, keys and values.
    pub qkv: Projection,
    /// Norms of each head of queries and of keys.
    pub head_norms: Option<[NormId; 2]>,
    /// The output layer.
    pub output: Projection,
    /// Which of the model's rotary embeddings it uses.
    pub rope: Option<usize>,
    /// Tokens that a token sees, itself included.
    pub window: Option<usize>,
}

/// What its backward pass needs: everything else is made again.
pub(crate) struct AttentionSaved {
    /// The block's input.
    x: Tensor,
    entry: Option<Tensor>,
    heads: Option<[HeadNorm; 2]>,
    /// After norm and rotation.
    q: Tensor,
    /// After norm and rotation.
    k: Tensor,
    v: Tensor,
    /// Attention's result, and what it keeps of each row of scores.
    attended: Tensor,
    stats: Tensor,
    exit: Option<Exit>,
    qkv_lows: Lows,
    output_lows: Lows,
}

/// What the norm of queries or keys keeps.
struct HeadNorm {
    input: Tensor,
    stats: Tensor,
}

impl AttentionPart {
    /// How far down the backward pass must go for what is trained of this part.
    pub fn lowest(&self, pass: &Pass) -> Option<Until> {
        let heads = self.head_norms.is_some_and(|ids| ids.into_iter().any(|id| pass.trains_norm(Some(id))));
        Until::lowest([
            (Until::Before, pass.trains_norm(self.frame.before)),
            (Until::Input, self.qkv.is_trained(pass)),
            (Until::Heads, heads),
            (Until::Output, self.output.is_trained(pass)),
            (Until::After, pass.trains_norm(self.frame.after)),
        ])
    }

    /// The residual stream `x` `[T, H]` → the new one, and what the backward pass needs.
    ///
    /// With a cache the tokens follow those that it holds, and are appended to it. With `narrow`, only its rows of
    /// the new stream are computed.
    pub fn forward(
        &self,
        x: Tensor,
        narrow: Option<Narrow>,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, AttentionSaved), ModelError> {
        let scope = pass.scope;
        let entry = self.frame.enter(&x, pass)?;
        let Projected { ys, lows: qkv_lows } =
            self.qkv.forward(entry.as_ref().map_or(&x, |entry| &entry.h), None, pass)?;
        let entry = match entry {
            Some(entry) => {
                scope.pool.recycle(entry.h)?;
                Some(entry.stats)
            }
            None => None,
        };
        let [q, k, v] = three(ys);
        let (q, k, heads) = self.norm_heads(q, k, pass)?;
        let (q, k) = (self.turn(q, Turn::Forward, pass)?, self.turn(k, Turn::Forward, pass)?);
        let mask = self.mask(pass);
        let (attended, stats) = match cache {
            None => attention::forward(&q, &k, &v, pass.spans, pass.heads, mask, scope)?,
            Some(cache) => {
                let (k, v) = cache.append(&k, &v)?;
                attention::forward(&q, &k, &v, pass.spans, pass.heads, mask, scope)?
            }
        };
        let (y, output_lows, exit) = match narrow {
            None => self.close(&x, &attended, pass)?,
            Some(Narrow { rows, .. }) => {
                let (x, attended) = (gather(&x, rows, scope)?, gather(&attended, rows, scope)?);
                let closed = self.close(&x, &attended, &pass.narrowed(narrow))?;
                scope.pool.recycle(x)?;
                scope.pool.recycle(attended)?;
                closed
            }
        };
        let saved = AttentionSaved { x, entry, heads, q, k, v, attended, stats, exit, qkv_lows, output_lows };
        Ok((y, saved))
    }

    /// The output layer and what follows.
    fn close(
        &self,
        x: &Tensor,
        attended: &Tensor,
        pass: &Pass,
    ) -> Result<(Tensor, Lows, Option<Exit>), ModelError> {
        let (out, lows) = self.output.forward_one(attended, self.frame.plus(x), pass)?;
        let (y, exit) = self.frame.leave(x, out, pass)?;
        Ok((y, lows, exit))
    }

    fn mask(&self, pass: &Pass) -> Mask {
        Mask { window: self.window, ..pass.mask }
    }

    /// Norms queries and keys head by head, where the model does.
    fn norm_heads(
        &self,
        q: Tensor,
        k: Tensor,
        pass: &Pass,
    ) -> Result<(Tensor, Tensor, Option<[HeadNorm; 2]>), ModelError> {
        let Some([of_q, of_k]) = self.head_norms else { return Ok((q, k, None)) };
        let (normed_q, q_stats) = pass.norm(of_q).forward(&q, None, pass.scope)?;
        let (normed_k, k_stats) = pass.norm(of_k).forward(&k, None, pass.scope)?;
        let kept = [HeadNorm { input: q, stats: q_stats }, HeadNorm { input: k, stats: k_stats }];
        Ok((normed_q, normed_k, Some(kept)))
    }

    fn turn(&self, x: Tensor, turn: Turn, pass: &Pass) -> Result<Tensor, OpError> {
        match self.rope {
            Some(rope) => rotate(x, pass.heads.head_dim, pass.positions, &pass.ropes[rope], turn),
            None => Ok(x),
        }
    }

    /// From the gradient `d` of the new residual stream (of `narrow`'s rows only, if given): the gradients of what is trained,
    /// at their places, and the gradient of the old stream, if the pass goes that far.
    pub fn backward(
        &self,
        saved: AttentionSaved,
        d: Tensor,
        narrow: Option<Narrow>,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let AttentionSaved { x, entry, heads, q, k, v, attended, stats, exit, qkv_lows, output_lows } = saved;
        let leaving = self.frame.leave_backward(exit, d, gradients, pass)?;
        let d = if until == Until::After {
            scope.pool.recycle(leaving.into_residual(scope)?)?;
            None
        } else {
            let dout = self.output_backward(
                leaving.output(),
                &attended,
                &output_lows,
                narrow,
                until,
                gradients,
                pass,
            )?;
            let mut residual = leaving.into_residual(scope)?;
            match dout {
                Some(dout) => {
                    if let Some(Narrow { rows, .. }) = narrow {
                        residual = scatter(residual, rows, pass.tokens(), scope)?;
                    }
                    let at = Saved { q: &q, k: &k, v: &v, out: &attended, stats: &stats };
                    let inner = backward(&at, &dout, pass.spans, pass.heads, self.mask(pass), scope)?;
                    scope.pool.recycle(dout)?;
                    let input = Input { x: &x, entry: entry.as_ref(), lows: &qkv_lows };
                    self.input_backward(input, inner, heads.as_ref(), residual, until, gradients, pass)?
                }
                None => {
                    scope.pool.recycle(residual)?;
                    None
                }
            }
        };
        recycle([x, q, k, v, attended, stats], [entry], [qkv_lows, output_lows], heads, scope)?;
        Ok(d)
    }

    /// Gradients of the output layer; that of attention's result, if it is wanted.
    #[allow(clippy::too_many_arguments)]
    fn output_backward(
        &self,
        d: &Tensor,
        attended: &Tensor,
        lows: &Lows,
        narrow: Option<Narrow>,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let narrowed = &pass.narrowed(narrow);
        let (dout, reduced) = self.output.backward_input(&[d], lows, until > Until::Output, narrowed)?;
        if self.output.is_trained(pass) {
            let some = narrow.map(|narrow| gather(attended, narrow.rows, scope)).transpose()?;
            let input = some.as_ref().unwrap_or(attended);
            let into = Into::Overwrite;
            self.output.backward_weights(&[d], lows, reduced, input, gradients, into, narrowed)?;
            if let Some(some) = some {
                scope.pool.recycle(some)?;
            }
        }
        match (dout, narrow) {
            (Some(dout), Some(Narrow { rows, .. })) => Ok(Some(scatter(dout, rows, pass.tokens(), scope)?)),
            (dout, _) => Ok(dout),
        }
    }

    /// From the gradients of q, k and v to that of the old residual stream.
    #[allow(clippy::too_many_arguments)]
    fn input_backward(
        &self,
        input: Input,
        Gradients { dq, dk, dv }: Gradients,
        heads: Option<&[HeadNorm; 2]>,
        residual: Tensor,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let (mut dq, mut dk) = (self.turn(dq, Turn::Back, pass)?, self.turn(dk, Turn::Back, pass)?);
        if let (Some([of_q, of_k]), Some([q, k])) = (self.head_norms, heads) {
            for (id, kept, d) in [(of_q, q, &mut dq), (of_k, k, &mut dk)] {
                let before = pass.norm(id).backward(&kept.input, &kept.stats, d, None, gradients, scope)?;
                scope.pool.recycle(std::mem::replace(d, before))?;
            }
        }
        if until <= Until::Heads {
            for tensor in [dq, dk, dv, residual] {
                scope.pool.recycle(tensor)?;
            }
            return Ok(None);
        }
        let dys = self.qkv.upstream(vec![dq, dk, dv], pass)?;
        let at = super::block::Start { frame: &self.frame, layers: &self.qkv, until };
        at.backward(input.x, input.entry, dys, input.lows, residual, gradients, pass)
    }
}

/// What the first layers' backward pass needs.
struct Input<'t> {
    x: &'t Tensor,
    entry: Option<&'t Tensor>,
    lows: &'t Lows,
}

impl AttentionSaved {
    /// Gives every buffer back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        let Self { x, entry, heads, q, k, v, attended, stats, exit, qkv_lows, output_lows } = self;
        if let Some(exit) = exit {
            exit.recycle(scope)?;
        }
        recycle([x, q, k, v, attended, stats], [entry], [qkv_lows, output_lows], heads, scope)
    }

    /// Gives every buffer back but the block's input.
    pub fn into_input(self, scope: Scope) -> Result<Tensor, ModelError> {
        let Self { x, entry, heads, q, k, v, attended, stats, exit, qkv_lows, output_lows } = self;
        if let Some(exit) = exit {
            exit.recycle(scope)?;
        }
        recycle([q, k, v, attended, stats], [entry], [qkv_lows, output_lows], heads, scope)?;
        Ok(x)
    }
}

fn recycle<const N: usize>(
    tensors: [Tensor; N],
    optional: [Option<Tensor>; 1],
    lows: [Lows; 2],
    heads: Option<[HeadNorm; 2]>,
    scope: Scope,
) -> Result<(), ModelError> {
    let heads = heads.into_iter().flatten().flat_map(|head| [head.input, head.stats]);
    lows.into_iter().for_each(|lows| lows.recycle(scope));
    for tensor in tensors.into_iter().chain(optional.into_iter().flatten()).chain(heads) {
        scope.pool.recycle(tensor)?;
    }
    Ok(())
}

fn three(ys: Vec<Tensor>) -> [Tensor; 3] {
    ys.try_into().unwrap_or_else(|_| unreachable!("queries, keys and values"))
}
