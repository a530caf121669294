//! What stands around each part of a block: the norm before it, the norm after it, the residual sum.

use candle_core::Tensor;
use lorafleet_spec::base::Placement;

use super::ModelError;
use super::parameters::NormId;
use super::pass::Pass;
use crate::ops::{Scope, add::add_to};

/// The norms of one part and where they stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Which of the two norms there are, and where the residual is added.
    pub placement: Placement,
    /// Of the part's input.
    pub before: Option<NormId>,
    /// Of the part's output, or of its sum with the residual.
    pub after: Option<NormId>,
}

/// The part's input, where it is not the residual stream itself, with the norm's statistics.
pub(crate) struct Entry {
    /// `norm(x)`.
    pub h: Tensor,
    /// For the backward pass.
    pub stats: Tensor,
}

/// What the norm after a part keeps.
pub(crate) struct Exit {
    input: Tensor,
    stats: Tensor,
}

/// Gradients on the way into a part.
pub(crate) struct Leaving {
    /// Of the part's output, where it is not that of the residual.
    branch: Option<Tensor>,
    residual: Tensor,
}

impl Frame {
    /// The norm before the part, if there is one.
    pub fn enter(&self, x: &Tensor, pass: &Pass) -> Result<Option<Entry>, ModelError> {
        let Some(norm) = self.before else { return Ok(None) };
        let (h, stats) = pass.norm(norm).forward(x, None, pass.scope)?;
        Ok(Some(Entry { h, stats }))
    }

    /// What the part's last layer adds to its result.
    pub fn plus<'t>(&self, x: &'t Tensor) -> Option<&'t Tensor> {
        (self.placement != Placement::Around).then_some(x)
    }

    /// From the part's output (the residual stream `x` added, see [`Frame::plus`]) to the new residual stream.
    pub fn leave(&self, x: &Tensor, out: Tensor, pass: &Pass) -> Result<(Tensor, Option<Exit>), ModelError> {
        let Some(norm) = self.after else { return Ok((out, None)) };
        let residual = (self.placement == Placement::Around).then_some(x);
        let (y, stats) = pass.norm(norm).forward(&out, residual, pass.scope)?;
        Ok((y, Some(Exit { input: out, stats })))
    }

    /// Backward of [`Frame::leave`].
    pub fn leave_backward(
        &self,
        exit: Option<Exit>,
        d: Tensor,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Leaving, ModelError> {
        let (Some(norm), Some(exit)) = (self.after, exit) else {
            return Ok(Leaving { branch: None, residual: d });
        };
        let branch = pass.norm(norm).backward(&exit.input, &exit.stats, &d, None, gradients, pass.scope)?;
        exit.recycle(pass.scope)?;
        if self.placement == Placement::Around {
            return Ok(Leaving { branch: Some(branch), residual: d });
        }
        pass.scope.pool.recycle(d)?;
        Ok(Leaving { branch: None, residual: branch })
    }

    /// The part's input again, for the gradients of its first layers.
    pub fn entered(
        &self,
        x: &Tensor,
        stats: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let (Some(norm), Some(stats)) = (self.before, stats) else { return Ok(None) };
        Ok(Some(pass.norm(norm).again(x, stats, pass.scope)?))
    }

    /// Backward of [`Frame::enter`] and of the residual: the gradient of `x`.
    pub fn enter_backward(
        &self,
        x: &Tensor,
        stats: Option<&Tensor>,
        dh: Tensor,
        residual: Tensor,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Tensor, ModelError> {
        let d = match (self.before, stats) {
            (Some(norm), Some(stats)) => {
                pass.norm(norm).backward(x, stats, &dh, Some(residual), gradients, pass.scope)?
            }
            _ => add_to(residual, &dh)?,
        };
        pass.scope.pool.recycle(dh)?;
        Ok(d)
    }
}

impl Exit {
    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        scope.pool.recycle(self.input)?;
        scope.pool.recycle(self.stats)?;
        Ok(())
    }
}

impl Leaving {
    /// Gradient of the part's output.
    pub fn output(&self) -> &Tensor {
        self.branch.as_ref().unwrap_or(&self.residual)
    }

    /// The residual's gradient, when that of the output was used.
    pub fn into_residual(self, scope: Scope) -> Result<Tensor, ModelError> {
        if let Some(branch) = self.branch {
            scope.pool.recycle(branch)?;
        }
        Ok(self.residual)
    }
}
