//! The backward pass through the whole model, down to the lowest trained tensor and no further.

use candle_core::Tensor;

use super::batch::Labels;
use super::block::{Depth, Saved};
use super::embed::TokenTable;
use super::pass::{Narrow, Pass};
use super::transformer::{Head, LossSum, NOT_A_CLASSIFIER, Run, Transformer, inputs, narrow};
use super::{ModelError, PackedBatch};
use crate::flops::FlopCounter;
use crate::ops::Scope;
use crate::params::AdapterView;

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All that the backward pass reads.
    #[default]
    Everything,
    /// The input of each block, from which the backward pass computes the block again: the same bits for less memory
    /// and about a third more time (arXiv:1604.06174).
    BlockInputs,
}

/// The lowest place at which something is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lowest {
    Embedding,
    Block(usize, Depth),
    Head,
}

/// What is kept of a block: of every block the same, so that no room is wasted on the smaller one.
#[allow(clippy::large_enum_variant)]
enum Kept {
    Saved(Saved),
    Input(Tensor),
}

impl Transformer {
    /// The loss of a micro-batch, summed over what is labelled, and the gradient of that sum.
    ///
    /// `gradients` is laid out as the adapter; every value of an adapted module or a whole tensor is **overwritten**.
    ///
    /// # Errors
    /// A token is not in the vocabulary, a sequence is too long, the adapter does not fit, or the labels are not of the
    /// kind that the model predicts.
    pub fn loss_and_gradients(
        &self,
        batch: &PackedBatch,
        adapter: &AdapterView,
        gradients: &mut [f32],
        flops: &FlopCounter,
    ) -> Result<LossSum, ModelError> {
        self.loss_and_gradients_keeping(Keep::Everything, batch, adapter, gradients, flops)
    }

    /// As [`Transformer::loss_and_gradients`], with a choice of what the forward pass keeps.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`].
    pub fn loss_and_gradients_keeping(
        &self,
        keep: Keep,
        batch: &PackedBatch,
        adapter: &AdapterView,
        gradients: &mut [f32],
        flops: &FlopCounter,
    ) -> Result<LossSum, ModelError> {
        self.parts.known.check(adapter, Some(gradients.len()))?;
        let labelled_tokens = batch.labelled_tokens();
        if labelled_tokens == 0 {
            gradients.fill(0.0);
            return Ok(LossSum::default());
        }
        let scope = Scope { pool: &self.pool, flops };
        let run = self.start(batch, Some(adapter), scope)?;
        let pass = &self.pass(&run, batch.positions(), scope);
        let lowest = self.lowest(&run, pass);
        let rows = self.head_rows(batch);
        let of = run.rows.gather(&rows);
        let narrow = narrow(&rows, &of, pass);
        let inputs = inputs(batch);
        let (mut x, embedded) = self.parts.embed.forward(&run.embed, inputs, pass)?;
        let (last, mut kept) = (self.parts.blocks.len() - 1, Vec::with_capacity(self.parts.blocks.len()));
        for (i, block) in self.parts.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, narrow.filter(|_| i == last), pass, None)?;
            x = out;
            match keep {
                _ if !lowest.reaches(i) => saved.recycle(scope)?,
                Keep::BlockInputs if i < last => kept.push(Kept::Input(saved.into_input(scope)?)),
                _ => kept.push(Kept::Saved(saved)),
            }
        }
        let of_head = &pass.narrowed(narrow);
        let (loss, d) = self.head_backward(x, batch, lowest != Lowest::Head, gradients, of_head)?;
        let d = self.blocks_backward(kept, d, narrow, lowest, gradients, pass)?;
        match (lowest, d) {
            (Lowest::Embedding, Some(d)) => {
                let wrote = self.head_wrote_tokens(&run);
                self.parts.embed.backward(&run.embed, embedded, d, inputs, wrote, gradients, pass)?;
            }
            (_, d) => {
                embedded.recycle(scope)?;
                d.into_iter().try_for_each(|d| scope.pool.recycle(d))?;
            }
        }
        run.bound.recycle(scope);
        Ok(LossSum { loss, labelled_tokens })
    }

    /// The head's loss, the gradients of what is trained of it, and that of its rows.
    fn head_backward(
        &self,
        x: Tensor,
        batch: &PackedBatch,
        wanted: bool,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<(f64, Option<Tensor>), ModelError> {
        match (&self.parts.head, batch.labels()) {
            (Head::LanguageModel(head), Labels::Tokens { targets, .. }) => {
                head.loss_and_gradient(x, targets, wanted, gradients, pass)
            }
            (Head::Classifier(head, _), labels) => {
                let (loss, d) = head.loss_and_gradient(x, labels, gradients, pass)?;
                Ok((loss, Some(d)))
            }
            (Head::LanguageModel(_), _) => Err(NOT_A_CLASSIFIER),
        }
    }

    /// Walks back through the blocks; returns the gradient of the first one's input, if it is wanted.
    fn blocks_backward(
        &self,
        mut kept: Vec<Kept>,
        mut d: Option<Tensor>,
        narrow: Option<Narrow>,
        lowest: Lowest,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let last = self.parts.blocks.len() - 1;
        for (i, block) in self.parts.blocks.iter().enumerate().rev() {
            let (Some(kept), Some(gradient)) = (kept.pop(), d.take()) else { break };
            let saved = match kept {
                Kept::Saved(saved) => saved,
                Kept::Input(x) => {
                    let (out, saved) = block.forward(x, None, pass, None)?;
                    pass.scope.pool.recycle(out)?;
                    saved
                }
            };
            let depth = match lowest {
                Lowest::Block(first, depth) if first == i => depth,
                _ => Depth::THROUGH,
            };
            d = block.backward(saved, gradient, narrow.filter(|_| i == last), depth, gradients, pass)?;
        }
        Ok(d)
    }

    /// Where the backward pass ends.
    fn lowest(&self, run: &Run, pass: &Pass) -> Lowest {
        if self.parts.embed.is_trained(&run.embed, pass) {
            return Lowest::Embedding;
        }
        let blocks = self.parts.blocks.iter().enumerate();
        let found = blocks.into_iter().find_map(|(i, block)| Some((i, block.lowest(pass)?)));
        found.map_or(Lowest::Head, |(i, depth)| Lowest::Block(i, depth))
    }

    /// Whether a tied head has written the gradient of the token vectors.
    fn head_wrote_tokens(&self, run: &Run) -> bool {
        match &self.parts.embed.tokens {
            TokenTable::Head(head) => run.bound.trains(*head),
            TokenTable::Rows(_) => false,
        }
    }
}

impl Lowest {
    /// Whether the backward pass reaches a block.
    fn reaches(self, block: usize) -> bool {
        match self {
            Self::Embedding => true,
            Self::Block(first, _) => block >= first,
            Self::Head => false,
        }
    }
}
