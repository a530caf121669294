//! Where an adapter's matrices lie in the flat buffers of weights and gradients, and named views into them.

use std::collections::HashMap;
use std::ops::Range;

/// What kind of module is adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear layer.
    Linear,
    /// An embedding: a linear layer whose input is one-hot, `in_features` the rows of its table, `out_features` its
    /// columns.
    Embedding,
}

/// One adapted module: where its matrices lie in every flat buffer of the adapter.
///
/// The module computes `y = x·Wᵀ + scale·(x·Aᵀ)·Bᵀ` (LoRA, arXiv:2106.09685), with `A` `[rank, in_features]`
/// and `B` `[out_features, rank]`, both row-major; with a magnitude `m` `[out_features]` it computes
/// `y = m/‖W + scale·B·A‖ · (x·Wᵀ + scale·(x·Aᵀ)·Bᵀ)` (DoRA, arXiv:2402.09353).
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Full name of the module, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// What it is.
    pub kind: ModuleKind,
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
    /// Place of DoRA's magnitude, of length `out_features`.
    pub magnitude: Option<Range<usize>>,
}

/// A tensor of the base that is trained whole: a module to save, or any tensor in full fine-tuning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeTensor {
    /// Canonical name, e.g. `classifier.weight`.
    pub name: String,
    /// Its shape, as the base stores it.
    pub shape: Vec<usize>,
    /// Where it lies in every flat buffer.
    pub place: Range<usize>,
}

/// What is to be adapted, before it has a place.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleSpec<'a> {
    /// Full name of the module.
    pub module: &'a str,
    /// What it is.
    pub kind: ModuleKind,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// The LoRA rank.
    pub rank: usize,
    /// Factor of the adapter's output.
    pub scale: f32,
    /// Whether it has a magnitude (DoRA).
    pub magnitude: bool,
}

/// The order in which trained tensors lie in a flat buffer, without gaps: module after module, `A`, `B`, then the
/// magnitude; whole tensors where they were pushed.
///
/// Weights, gradients, both moments and the reduced buffer all use the same layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    modules: Vec<AdaptedModule>,
    by_name: HashMap<String, usize>,
    whole: Vec<WholeTensor>,
    whole_by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a linear layer with LoRA; a module named twice keeps its first place and is not added again.
    pub fn push(&mut self, module: &str, in_features: usize, out_features: usize, rank: usize, scale: f32) {
        let (kind, magnitude) = (ModuleKind::Linear, false);
        self.push_module(&ModuleSpec { module, kind, in_features, out_features, rank, scale, magnitude });
    }

    /// Appends a module; one named twice keeps its first place and is not added again.
    pub fn push_module(&mut self, spec: &ModuleSpec) {
        if self.by_name.contains_key(spec.module) {
            return;
        }
        let a = self.take(spec.rank * spec.in_features);
        let b = self.take(spec.out_features * spec.rank);
        let magnitude = spec.magnitude.then(|| self.take(spec.out_features));
        self.by_name.insert(spec.module.to_owned(), self.modules.len());
        let ModuleSpec { module, kind, in_features, out_features, rank, scale, .. } = *spec;
        let module = module.to_owned();
        self.modules.push(AdaptedModule {
            module,
            kind,
            in_features,
            out_features,
            rank,
            scale,
            a,
            b,
            magnitude,
        });
    }

    /// Appends a tensor that is trained whole; one named twice keeps its first place and is not added again.
    pub fn push_whole(&mut self, name: &str, shape: &[usize]) {
        if self.whole_by_name.contains_key(name) {
            return;
        }
        let place = self.take(shape.iter().product());
        self.whole_by_name.insert(name.to_owned(), self.whole.len());
        self.whole.push(WholeTensor { name: name.to_owned(), shape: shape.to_vec(), place });
    }

    fn take(&mut self, len: usize) -> Range<usize> {
        let start = self.len;
        self.len += len;
        start..self.len
    }

    /// Number of values in a flat buffer: the trainable parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.whole.is_empty()
    }

    /// The adapted modules, in the order of the buffer.
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// The tensors that are trained whole, in the order of the buffer.
    pub fn whole(&self) -> &[WholeTensor] {
        &self.whole
    }

    /// The adapted module of that name, if it is one.
    pub fn find(&self, module: &str) -> Option<&AdaptedModule> {
        self.by_name.get(module).map(|&i| &self.modules[i])
    }

    /// The whole tensor of that name, if it is trained.
    pub fn find_whole(&self, tensor: &str) -> Option<&WholeTensor> {
        self.whole_by_name.get(tensor).map(|&i| &self.whole[i])
    }

    /// Name of the tensor that holds a value of the flat buffers, for messages.
    pub fn name_at(&self, index: usize) -> Option<String> {
        let part = |module: &AdaptedModule| {
            let magnitude = module.magnitude.as_ref().is_some_and(|place| place.contains(&index));
            let matrix = match () {
                () if module.a.contains(&index) => "lora_A",
                () if module.b.contains(&index) => "lora_B",
                () if magnitude => "lora_magnitude_vector",
                () => return None,
            };
            Some(format!("{}.{matrix}", module.module))
        };
        let whole = || self.whole.iter().find(|tensor| tensor.place.contains(&index));
        self.modules.iter().find_map(part).or_else(|| whole().map(|tensor| tensor.name.clone()))
    }
}

/// Dropout of the adapters' inputs in one step. Its masks depend on nothing but what is named here, the example's place
/// in the step, the token's place in the example and the module: never on how a step is cut into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a value is dropped, in [0, 1).
    pub p: f32,
    /// The job's seed.
    pub seed: u64,
    /// The step that is computed.
    pub step: u64,
}

/// An adapter's weights as the model sees them: read only, one flat buffer and its layout.
#[derive(Clone, Copy, Debug)]
pub struct AdapterView<'a> {
    /// Where each tensor lies.
    pub layout: &'a Layout,
    /// All weights; as long as the layout.
    pub weights: &'a [f32],
    /// The first `A` and `B` of adapters that start as a part of the base (PiSSA, OLoRA), at the same places: their
    /// product is subtracted, so that the base itself need not change. Other places mean nothing.
    pub frozen_start: Option<&'a [f32]>,
    /// Dropout of the adapters' inputs; nothing where no step is trained.
    pub dropout: Option<Dropout>,
}

/// The trained tensors of one module.
#[derive(Clone, Copy, Debug)]
pub struct LoraWeights<'a> {
    /// `A`, `[rank, in_features]`, row-major.
    pub a: &'a [f32],
    /// `B`, `[out_features, rank]`, row-major.
    pub b: &'a [f32],
    /// DoRA's magnitude, `[out_features]`.
    pub magnitude: Option<&'a [f32]>,
    /// `A` and `B` as they were at first, to be subtracted.
    pub start: Option<(&'a [f32], &'a [f32])>,
    /// Names, sizes, scale, and the places in the flat buffers (gradients go to the same places).
    pub module: &'a AdaptedModule,
}

impl<'a> AdapterView<'a> {
    /// A view without a frozen start or dropout.
    pub fn new(layout: &'a Layout, weights: &'a [f32]) -> Self {
        Self { layout, weights, frozen_start: None, dropout: None }
    }

    /// The trained tensors of a module, or nothing where the module has no adapter.
    pub fn get(&self, module: &str) -> Option<LoraWeights<'a>> {
        let module = self.layout.find(module)?;
        let weights = self.weights;
        Some(LoraWeights {
            a: &weights[module.a.clone()],
            b: &weights[module.b.clone()],
            magnitude: module.magnitude.clone().map(|place| &weights[place]),
            start: self.frozen_start.map(|start| (&start[module.a.clone()], &start[module.b.clone()])),
            module,
        })
    }

    /// The values of a tensor that is trained whole, and its place in the flat buffers.
    pub fn whole(&self, tensor: &str) -> Option<(&'a [f32], Range<usize>)> {
        let tensor = self.layout.find_whole(tensor)?;
        Some((&self.weights[tensor.place.clone()], tensor.place.clone()))
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
    fn magnitudes_and_whole_tensors_have_places_and_names() {
        let mut layout = layout();
        let (kind, magnitude) = (ModuleKind::Embedding, true);
        layout.push_module(&ModuleSpec {
            module: "embed",
            kind,
            in_features: 7,
            out_features: 2,
            rank: 1,
            scale: 1.0,
            magnitude,
        });
        layout.push_whole("head.weight", &[3, 2]);
        layout.push_whole("head.weight", &[3, 2]);
        assert_eq!(layout.find("embed").unwrap().magnitude, Some(31..33));
        assert_eq!(layout.find_whole("head.weight").unwrap().place, 33..39);
        assert_eq!(layout.len(), 39);
        for (index, name) in
            [(0, "q.lora_A"), (21, "v.lora_B"), (32, "embed.lora_magnitude_vector"), (38, "head.weight")]
        {
            assert_eq!(layout.name_at(index).as_deref(), Some(name));
        }
        assert_eq!(layout.name_at(39), None);
        let weights: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        let view = AdapterView { frozen_start: Some(&weights), ..AdapterView::new(&layout, &weights) };
        let embed = view.get("embed").unwrap();
        assert_eq!(embed.magnitude, Some(&[31.0, 32.0][..]));
        assert_eq!(embed.start.unwrap().1, embed.b);
        assert_eq!(view.whole("head.weight").unwrap(), (&weights[33..], 33..39));
    }

    #[test]
    fn a_view_finds_its_module() {
        let layout = layout();
        let weights: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        let view = AdapterView::new(&layout, &weights);
        assert_eq!(view.get("v").unwrap().b, [20.0, 21.0]);
        assert!(view.get("k").is_none());
    }
}
