//! What must hold for every family: gradients, packing, bits, cost, decoding with a cache.

use super::*;
use crate::model::Keep;
use crate::model::weights::Weights;
use crate::ops::tests::{noise, on_threads};

/// One base of each family, and what it is loaded for.
const FAMILIES: [(&str, Head); 11] = [
    ("llama-all-linear", Head::LanguageModel),
    ("mistral-sliding-window", Head::LanguageModel),
    ("qwen2", Head::LanguageModel),
    ("qwen3", Head::LanguageModel),
    ("phi3", Head::LanguageModel),
    ("gemma2", Head::LanguageModel),
    ("gemma3", Head::LanguageModel),
    ("gpt2", Head::LanguageModel),
    ("bert-classify", Head::Classifier { labels: 5 }),
    ("roberta-classify", Head::Classifier { labels: 5 }),
    ("distilbert-classify", Head::Classifier { labels: 5 }),
];

/// A family's model with examples to train on, longer than its windows.
struct Case {
    name: &'static str,
    model: Transformer,
    shape: BaseShape,
    dir: PathBuf,
    examples: Vec<Example>,
}

impl Case {
    fn load((name, head): (&'static str, Head)) -> Self {
        let dir = base(name);
        let shape = BaseShape::read(&dir, head).unwrap();
        let vocabulary = shape.vocab as u32;
        let example = |s: usize, n: usize| {
            let tokens: Vec<u32> = (0..n).map(|i| ((i * 31 + s * 17) as u32 * 7 + 3) % vocabulary).collect();
            let (second, target) = match head {
                Head::LanguageModel => (None, Target::Tokens((0..n).map(|i| i > 3).collect())),
                Head::Classifier { labels } => (Some(n / 2), Target::Class((s % labels) as u32)),
            };
            Example { tokens, second, target }
        };
        let examples = [19, 12, 6].into_iter().enumerate().map(|(s, n)| example(s, n)).collect();
        Self { name, model: Transformer::load(&dir, &shape, Precision::F32).unwrap(), shape, dir, examples }
    }

    fn all() -> impl Iterator<Item = Self> {
        FAMILIES.into_iter().map(Self::load)
    }

    fn batch(&self) -> PackedBatch {
        PackedBatch::new(&self.examples.iter().collect::<Vec<_>>()).unwrap()
    }

    /// LoRA on every linear layer within the blocks.
    fn lora(&self) -> (Layout, Vec<f32>) {
        let layout = layout(&self.shape, &IN_BLOCKS, 0..self.shape.layers, 3);
        let weights = noise(layout.len(), 1).iter().map(|x| 0.2 * x).collect();
        (layout, weights)
    }

    /// Every tensor of the base, as it is.
    fn whole(&self) -> (Layout, Vec<f32>) {
        let weights = Weights::open(&self.dir, &self.shape).unwrap();
        let (mut layout, mut values) = (Layout::new(), Vec::new());
        for (name, shape) in self.shape.parameter_shapes() {
            layout.push_whole(&name, &shape);
            let mut tensor = weights.read(&name).unwrap();
            if self.shape.fresh.contains(&name) {
                tensor = noise(tensor.len(), 9);
            }
            values.extend(tensor);
        }
        (layout, values)
    }

    fn gradients(&self, batch: &PackedBatch, layout: &Layout, weights: &[f32]) -> (LossSum, Vec<f32>) {
        gradients(&self.model, batch, layout, weights)
    }

    /// Step of the differences: short where a ReLU has a kink, and the loss, of few terms, is exact enough for it.
    fn step(&self) -> f32 {
        if self.shape.attention.causal { 2e-3 } else { 3e-4 }
    }

    /// Compares the gradient of each tensor with differences of the loss.
    fn check(&self, layout: &Layout, weights: &[f32]) {
        let batch = self.batch();
        let (sum, gradients) = self.gradients(&batch, layout, weights);
        let loss = |weights: &[f32]| {
            let view = AdapterView::new(layout, weights);
            self.model.loss(&batch, Some(&view), &FlopCounter::new()).unwrap().loss
        };
        let difference = (loss(weights) - sum.loss).abs();
        assert!(difference < 1e-4 * sum.loss, "{}: the loss is off by {difference}", self.name);
        for (tensor, place) in places(layout) {
            let name = format!("{}: {tensor}", self.name);
            let part = &gradients[place.clone()];
            assert!(part.iter().all(|g| g.is_finite()), "{name}: not every value was written");
            for seed in [21, 22] {
                let direction = noise(part.len(), seed);
                let moved = |step: f32| {
                    let mut weights = weights.to_vec();
                    weights[place.clone()].iter_mut().zip(&direction).for_each(|(w, u)| *w += step * u);
                    loss(&weights)
                };
                along(&name, part, &direction, sum.loss, self.step(), moved);
            }
        }
    }
}

/// Compares a gradient with the slope of `moved`, the loss after a step along a direction.
fn along(name: &str, gradient: &[f32], direction: &[f32], loss: f64, step: f32, moved: impl Fn(f32) -> f64) {
    let slope = |h: f32| (moved(h) - moved(-h)) / (2.0 * f64::from(h));
    // Richardson's: what grows with the square of the step is gone.
    let numeric = (4.0 * slope(step) - slope(2.0 * step)) / 3.0;
    let products = gradient.iter().zip(direction).map(|(g, u)| f64::from(*g) * f64::from(*u));
    let by_hand: f64 = products.sum();
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    // A loss has an error of a few units in the last place of its f32 terms.
    let allowed = 5e-3 * norm + 1e-6 * loss / f64::from(step);
    assert!(
        (numeric - by_hand).abs() < allowed,
        "{name}: {numeric} by difference, {by_hand} by hand, ±{allowed} allowed"
    );
}

/// Every tensor of a layout with its place.
fn places(layout: &Layout) -> Vec<(String, std::ops::Range<usize>)> {
    let modules = layout
        .modules()
        .iter()
        .flat_map(|m| [(format!("{}.A", m.module), m.a.clone()), (format!("{}.B", m.module), m.b.clone())]);
    let whole = layout.whole().iter().map(|tensor| (tensor.name.clone(), tensor.place.clone()));
    modules.chain(whole).collect()
}

#[test]
fn adapters_gradients_match_finite_differences() {
    for case in Case::all() {
        let (layout, weights) = case.lora();
        case.check(&layout, &weights);
    }
}

#[test]
fn full_fine_tunings_gradients_match_finite_differences() {
    for case in Case::all() {
        let (layout, weights) = case.whole();
        case.check(&layout, &weights);
    }
}

#[test]
fn a_base_trained_whole_computes_as_the_base_does() {
    for case in Case::all() {
        let (layout, weights) = case.whole();
        let view = AdapterView::new(&layout, &weights);
        let batch = case.batch();
        let loss = |view| case.model.loss(&batch, view, &FlopCounter::new()).unwrap().loss;
        if case.shape.fresh.is_empty() {
            assert_eq!(loss(Some(&view)), loss(None), "{}", case.name);
        }
    }
}

#[test]
fn a_packed_batch_is_the_sum_of_its_examples() {
    for case in Case::all() {
        let (layout, weights) = case.lora();
        let (together, gradients) = case.gradients(&case.batch(), &layout, &weights);
        let mut alone = (LossSum::default(), vec![0f32; layout.len()]);
        for example in &case.examples {
            let one = PackedBatch::new(&[example]).unwrap();
            let (sum, gradients) = case.gradients(&one, &layout, &weights);
            alone.0.loss += sum.loss;
            alone.0.labelled_tokens += sum.labelled_tokens;
            alone.1.iter_mut().zip(gradients).for_each(|(sum, g)| *sum += g);
        }
        assert_eq!(together.labelled_tokens, alone.0.labelled_tokens);
        assert!((together.loss - alone.0.loss).abs() < 1e-6 * together.loss, "{}", case.name);
        for (name, place) in places(&layout) {
            let (packed, alone) = (&gradients[place.clone()], &alone.1[place]);
            let largest = alone.iter().fold(0f32, |most, g| most.max(g.abs()));
            for (a, b) in packed.iter().zip(alone) {
                assert!((a - b).abs() <= 1e-5 * largest, "{} {name}: {a} packed, {b} alone", case.name);
            }
        }
    }
}

#[test]
fn the_same_bits_on_any_threads_and_when_computed_again() {
    for case in Case::all() {
        for (layout, weights) in [case.lora(), case.whole()] {
            let batch = case.batch();
            let run = |threads, keep| {
                let view = AdapterView::new(&layout, &weights);
                let mut gradients = vec![f32::NAN; layout.len()];
                let flops = FlopCounter::new();
                let sum = on_threads(threads, || {
                    case.model
                        .loss_and_gradients_keeping(keep, &batch, &view, &mut gradients, &flops)
                        .unwrap()
                });
                (sum.loss.to_bits(), gradients.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
            };
            let one = run(1, Keep::Everything);
            assert!(one == run(2, Keep::Everything), "{}: 2 threads", case.name);
            assert!(one == run(3, Keep::BlockInputs), "{}: 3 threads, blocks computed again", case.name);
        }
    }
}

#[test]
fn a_step_costs_no_more_than_its_account() {
    for case in Case::all() {
        let (layout, weights) = case.lora();
        let batch = case.batch();
        let (flops, mut gradients) = (FlopCounter::new(), vec![0.0; layout.len()]);
        let view = AdapterView::new(&layout, &weights);
        case.model.loss_and_gradients(&batch, &view, &mut gradients, &flops).unwrap();
        let shape = &case.shape;
        let in_blocks = |l: &&lorafleet_spec::base::LinearModule| l.layer.is_some() || l.role == Role::Head;
        let frozen: usize =
            shape.linears.iter().filter(in_blocks).map(|l| l.in_features * l.out_features).sum();
        let tokens = batch.tokens();
        // 7 products of q·k's size, over half of the pairs where a token sees only earlier ones; tiles of 16 keys.
        let pairs = |n: usize| if shape.attention.causal { n * (n + 16) / 2 } else { n * (n + 16) };
        let attention: usize = case.examples.iter().map(|e| 14 * pairs(e.tokens.len())).sum::<usize>()
            * shape.heads
            * shape.head_dim
            * shape.layers;
        let account = (4 * frozen + 6 * layout.len()) * tokens + attention;
        let ratio = flops.total() as f64 / account as f64;
        assert!(ratio <= 1.02, "{}: {ratio} of 4N + 6P + attention", case.name);
    }
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_whole() {
    for case in Case::all().filter(|case| case.shape.attention.causal) {
        let (layout, weights) = case.lora();
        let view = AdapterView::new(&layout, &weights);
        let vocabulary = case.model.vocabulary();
        let tokens: Vec<u32> = (0..27).map(|i| i * 11 % vocabulary as u32).collect();
        let whole = case.model.logits(&PackedBatch::unlabelled([tokens.as_slice()]), Some(&view)).unwrap();
        let mut session = case.model.session(Some(&view), 27).unwrap();
        let mut at = 0;
        for n in [9, 1, 1, 12, 1, 3] {
            let logits = session.append(&tokens[at..at + n]).unwrap();
            at += n;
            for (x, y) in logits.iter().zip(&whole[(at - 1) * vocabulary..at * vocabulary]) {
                assert!((x - y).abs() < 1e-4, "{} after {at} tokens: {x} and {y}", case.name);
            }
        }
    }
}

#[test]
fn dropout_belongs_to_the_example_and_the_step() {
    for case in Case::all() {
        let (layout, weights) = case.lora();
        let run = |batch: &PackedBatch, step| {
            let dropout = Some(Dropout { p: 0.3, seed: 5, step });
            let view = AdapterView { dropout, ..AdapterView::new(&layout, &weights) };
            let mut gradients = vec![f32::NAN; layout.len()];
            case.model.loss_and_gradients(batch, &view, &mut gradients, &FlopCounter::new()).unwrap();
            gradients
        };
        let together = run(&case.batch().at_places(&[7, 8, 9]), 3);
        let mut alone = vec![0f32; layout.len()];
        for (i, example) in case.examples.iter().enumerate() {
            let one = PackedBatch::new(&[example]).unwrap().at_places(&[7 + i]);
            alone.iter_mut().zip(run(&one, 3)).for_each(|(sum, g)| *sum += g);
        }
        let largest = together.iter().fold(0f32, |most, g| most.max(g.abs()));
        let off = together.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(off < 1e-4 * largest, "{}: {off} of {largest}", case.name);
        assert_ne!(together, run(&case.batch().at_places(&[7, 8, 9]), 4), "{}: another step", case.name);
        assert_ne!(together, run(&case.batch(), 3), "{}: other examples", case.name);
    }
}

#[test]
fn classes_and_scores_are_predicted_for_each_sequence() {
    for case in Case::all().filter(|case| !case.shape.attention.causal) {
        let batch = case.batch();
        let logits = case.model.predict(&batch, None).unwrap();
        let alone = case
            .examples
            .iter()
            .flat_map(|example| case.model.predict(&PackedBatch::new(&[example]).unwrap(), None).unwrap());
        assert_eq!(logits, alone.collect::<Vec<_>>(), "{}: bit for bit", case.name);
        let cross_entropy = |(row, class): (&[f32], usize)| {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(row[class])
        };
        let want: f64 = logits.chunks_exact(5).zip(0..).map(cross_entropy).sum();
        let got = case.model.loss(&batch, None, &FlopCounter::new()).unwrap();
        assert!((got.loss - want).abs() < 1e-5 && got.labelled_tokens == 3, "{}: {got:?}", case.name);
        assert!(case.model.session(None, 4).is_err() && case.model.logits(&batch, None).is_err());
        let tokens = PackedBatch::pack([([1u32, 2].as_slice(), [false, true].as_slice())]).unwrap();
        let error = case.model.loss(&tokens, None, &FlopCounter::new()).unwrap_err().to_string();
        assert!(error.contains("class"), "{error}");
        let unknown = Example { target: Target::Class(5), ..case.examples[0].clone() };
        let unknown = PackedBatch::new(&[&unknown]).unwrap();
        let error = case.model.loss(&unknown, None, &FlopCounter::new()).unwrap_err().to_string();
        assert!(error.contains("class 5"), "{error}");
    }
}

#[test]
fn adapters_of_embeddings_and_heads_get_gradients() {
    for case in Case::all() {
        let mut layout = Layout::new();
        let tokens = case.shape.embedding_at(lorafleet_spec::base::EmbeddingRole::Tokens).unwrap();
        layout.push_module(&ModuleSpec {
            module: &tokens.name,
            kind: ModuleKind::Embedding,
            in_features: tokens.rows,
            out_features: tokens.columns,
            rank: 2,
            scale: 1.5,
            magnitude: false,
        });
        for l in case.shape.linears.iter().filter(|l| l.layer.is_none()) {
            layout.push(&l.name, l.in_features, l.out_features, 2, 0.5);
        }
        let weights: Vec<f32> = noise(layout.len(), 4).iter().map(|x| 0.2 * x).collect();
        case.check(&layout, &weights);
    }
}
