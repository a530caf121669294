//! The flat buffers that hold an adapter's weights and moments, and the named views into them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One adapted module: where its two low-rank matrices lie in every flat buffer of the adapter.
///
/// The module computes `y = x·Wᵀ + scale·(x·Aᵀ)·Bᵀ` (LoRA, arXiv:2106.09685), with `A` `[rank, in_features]`
/// and `B` `[out_features, rank]`, both row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Full name of the linear module, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Width of the module's input.
    pub in_features: usize,
    /// Width of the module's output.
    pub out_features: usize,
    /// The LoRA rank r of this module.
    pub rank: usize,
    /// Factor of the adapter's output: alpha / r, or alpha / √r with rank stabilization.
    pub scale: f32,
    /// Place of `A`.
    pub a: Range<usize>,
    /// Place of `B`.
    pub b: Range<usize>,
}

/// The order in which an adapter's matrices lie in a flat buffer: module after module, `A` before `B`, no gaps.
///
/// Weights, gradients, both moments and the reduced buffer all use the same layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    modules: Vec<AdaptedModule>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a module; a module named twice keeps its first place and is not added again.
    pub fn push(&mut self, module: &str, in_features: usize, out_features: usize, rank: usize, scale: f32) {
        if self.by_name.contains_key(module) {
            return;
        }
        let a = self.len..self.len + rank * in_features;
        let b = a.end..a.end + out_features * rank;
        self.len = b.end;
        self.by_name.insert(module.to_owned(), self.modules.len());
        self.modules.push(AdaptedModule {
            module: module.to_owned(),
            in_features,
            out_features,
            rank,
            scale,
            a,
            b,
        });
    }

    /// Number of values in a flat buffer: the adapter's trainable parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no module is adapted.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The adapted modules, in the order of the buffer.
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// The adapted module of that name, if it is one.
    pub fn find(&self, module: &str) -> Option<&AdaptedModule> {
        self.by_name.get(module).map(|&i| &self.modules[i])
    }
}

/// An adapter's weights as the model sees them: read only, one flat buffer and its layout.
#[derive(Clone, Copy, Debug)]
pub struct AdapterView<'a> {
    /// Where each module's matrices lie.
    pub layout: &'a Layout,
    /// All weights; as long as the layout.
    pub weights: &'a [f32],
}

/// The two low-rank matrices of one module.
#[derive(Clone, Copy, Debug)]
pub struct LoraWeights<'a> {
    /// `A`, `[rank, in_features]`, row-major.
    pub a: &'a [f32],
    /// `B`, `[out_features, rank]`, row-major.
    pub b: &'a [f32],
    /// Names, sizes, scale, and the places of `A` and `B` in the flat buffers (gradients go to the same places).
    pub module: &'a AdaptedModule,
}

impl<'a> AdapterView<'a> {
    /// The matrices of a module, or nothing where the module has no adapter.
    pub fn get(&self, module: &str) -> Option<LoraWeights<'a>> {
        let module = self.layout.find(module)?;
        let weights = self.weights;
        Some(LoraWeights { a: &weights[module.a.clone()], b: &weights[module.b.clone()], module })
    }
}

/// Everything that a step changes: the adapter's weights and AdamW's moments, after `step` finished steps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Finished optimizer steps.
    pub step: u64,
    /// Adapter weights.
    pub weights: Vec<f32>,
    /// First moments (exponential average of the gradient).
    pub first: Vec<f32>,
    /// Second moments (exponential average of its square).
    pub second: Vec<f32>,
}

impl State {
    /// A state of `len` zeros at step 0.
    pub fn zeros(len: usize) -> Self {
        Self { step: 0, weights: vec![0.0; len], first: vec![0.0; len], second: vec![0.0; len] }
    }
}

/// Two whole states: the current one, and a spare one into which the next is written.
///
/// Invariant: the current state is whole at every instant. Only [`States::adopt`] changes which one is current, after
/// the spare one has been written completely.
#[derive(Clone, Debug)]
pub struct States {
    layout: Arc<Layout>,
    current: State,
    spare: State,
}

impl States {
    /// Both states zero, at step 0.
    pub fn new(layout: Arc<Layout>) -> Self {
        let len = layout.len();
        Self { layout, current: State::zeros(len), spare: State::zeros(len) }
    }

    /// The layout that all buffers share.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The last whole state.
    pub fn current(&self) -> &State {
        &self.current
    }

    /// The current state's weights.
    pub fn view(&self) -> AdapterView<'_> {
        AdapterView { layout: &self.layout, weights: &self.current.weights }
    }

    /// The current state to read, and the spare one to write. What is written counts only after [`States::adopt`].
    pub fn current_and_spare(&mut self) -> (&State, &mut State) {
        (&self.current, &mut self.spare)
    }

    /// Makes the spare state, now whole, the current one.
    pub fn adopt(&mut self) {
        std::mem::swap(&mut self.current, &mut self.spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::new();
        layout.push("q", 3, 5, 2, 0.5);
        layout.push("v", 4, 2, 1, 2.0);
        layout.push("q", 3, 5, 2, 0.5);
        layout
    }

    #[test]
    fn matrices_lie_side_by_side() {
        let layout = layout();
        assert_eq!(layout.modules().len(), 2);
        assert_eq!(layout.len(), 2 * (3 + 5) + (4 + 2));
        let (q, v) = (&layout.modules()[0], layout.find("v").unwrap());
        assert_eq!((q.a.clone(), q.b.clone()), (0..6, 6..16));
        assert_eq!((v.a.clone(), v.b.clone()), (16..20, 20..22));
    }

    #[test]
    fn a_view_finds_its_module() {
        let layout = layout();
        let weights: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        let view = AdapterView { layout: &layout, weights: &weights };
        assert_eq!(view.get("v").unwrap().b, [20.0, 21.0]);
        assert!(view.get("k").is_none());
    }

    #[test]
    fn the_spare_state_counts_only_once_adopted() {
        let mut states = States::new(Arc::new(layout()));
        let (_, spare) = states.current_and_spare();
        spare.step = 1;
        spare.weights[0] = 7.0;
        assert_eq!(states.current().step, 0);
        assert_eq!(states.view().weights[0], 0.0);
        states.adopt();
        assert_eq!(states.current().step, 1);
        assert_eq!(states.view().weights[0], 7.0);
    }
}
