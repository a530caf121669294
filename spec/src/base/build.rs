//! Puts a shape together: a family's table with a config's sizes, and the tensors that the files have for it.

use super::{
    BaseError, BaseShape, TensorFile,
    config::Config,
    family::{Bias, ClassifierRow, Dim, Family},
    parts::{
        EmbeddingModule, EmbeddingRole, Head, HeadDense, HeadShape, LinearModule, NormKind, NormModule,
        NormRole, Positions, Role,
    },
    tensors::{self, Wanted},
};

/// The shape of a config with a head, and where in the files its tensors are.
pub(super) fn assemble(config: Config, files: &[TensorFile], head: Head) -> Result<BaseShape, BaseError> {
    let family = config.family;
    let head = head_shape(family, head)?;
    let bias = (config.attention_bias, config.mlp_bias);
    let mut shape = BaseShape {
        family,
        hidden: config.hidden,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        mlp: config.mlp,
        vocab: config.vocab,
        max_positions: config.max_positions,
        tied: config.tied,
        norm: config.norm,
        placement: family.placement,
        qk_norm: family.norms.iter().any(|(_, role)| *role == NormRole::Q),
        positions: config.positions,
        activation: config.activation,
        gated: family.gated,
        attention: config.attention,
        layer_kinds: config.layer_kinds,
        embedding_scale: config.embedding_scale,
        final_softcap: config.final_softcap,
        token_types: config.token_types,
        embedding_norm: family.outer_norms.iter().any(|(_, role)| *role == NormRole::Embedding),
        head,
        initializer_range: config.initializer_range,
        linears: Vec::new(),
        norms: Vec::new(),
        embeddings: Vec::new(),
        tensors: Default::default(),
        fresh: Vec::new(),
    };
    shape.linears = layer_linears(&shape, bias);
    shape.linears.extend(head_linears(&shape));
    shape.norms = norms(&shape);
    shape.embeddings = embeddings(&shape);
    let inventory = tensors::inventory(files, &wanted(&shape))?;
    (shape.tensors, shape.fresh) = (inventory.tensors, inventory.absent);
    Ok(shape)
}

fn head_shape(family: &Family, head: Head) -> Result<HeadShape, BaseError> {
    match head {
        Head::LanguageModel if family.language_model.is_none() => Err(BaseError::Config(vec![format!(
            "a {} model is an encoder and cannot continue a text; use it with `task: classification`",
            family.name
        )])),
        Head::LanguageModel => Ok(HeadShape::LanguageModel),
        Head::Classifier { labels } => {
            let ClassifierRow { token, dense, .. } = &family.classifier;
            let dense = dense.map(|(_, role, activation)| HeadDense { role, activation });
            Ok(HeadShape::Classifier { labels, token: *token, dense })
        }
    }
}

fn layer_linears(shape: &BaseShape, (attention_bias, mlp_bias): (bool, bool)) -> Vec<LinearModule> {
    let family = shape.family;
    let one = |layer: usize| {
        family.linears.iter().map(move |row| LinearModule {
            name: format!("{}.{}.{layer}.{}", family.body, family.layers, row.name),
            in_features: size(row.input, shape),
            out_features: size(row.output, shape),
            bias: match row.bias {
                Bias::Always => true,
                Bias::Never => false,
                Bias::Attention => attention_bias,
                Bias::Mlp => mlp_bias,
            },
            layer: Some(layer),
            role: row.role,
            conv1d: family.conv1d,
        })
    };
    (0..shape.layers).flat_map(one).collect()
}

fn head_linears(shape: &BaseShape) -> Vec<LinearModule> {
    let linear = |name: &str, role, out_features, bias| LinearModule {
        name: name.to_owned(),
        in_features: shape.hidden,
        out_features,
        bias,
        layer: None,
        role,
        conv1d: false,
    };
    match shape.head {
        HeadShape::LanguageModel => shape
            .family
            .language_model
            .map(|name| linear(name, Role::Head, shape.vocab, false))
            .into_iter()
            .collect(),
        HeadShape::Classifier { labels, .. } => {
            let ClassifierRow { dense, last, bias, .. } = &shape.family.classifier;
            let dense = dense.map(|(name, role, _)| linear(name, role, shape.hidden, true));
            dense.into_iter().chain([linear(last, Role::Classifier, labels, *bias)]).collect()
        }
    }
}

fn norms(shape: &BaseShape) -> Vec<NormModule> {
    let family = shape.family;
    let width = |role| if matches!(role, NormRole::Q | NormRole::K) { shape.head_dim } else { shape.hidden };
    let outer = |wanted: bool| {
        let rows =
            family.outer_norms.iter().filter(move |(_, role)| (*role == NormRole::Embedding) == wanted);
        rows.map(move |(name, role)| NormModule {
            name: format!("{}.{name}", family.body),
            width: width(*role),
            layer: None,
            role: *role,
        })
    };
    let one = |layer: usize| {
        family.norms.iter().map(move |(name, role)| NormModule {
            name: format!("{}.{}.{layer}.{name}", family.body, family.layers),
            width: width(*role),
            layer: Some(layer),
            role: *role,
        })
    };
    outer(true).chain((0..shape.layers).flat_map(one)).chain(outer(false)).collect()
}

fn embeddings(shape: &BaseShape) -> Vec<EmbeddingModule> {
    let offset = match shape.positions {
        Positions::Learned { offset } => offset,
        Positions::Rope(_) => 0,
    };
    let embedding = |(name, role): &(&str, EmbeddingRole)| EmbeddingModule {
        name: format!("{}.{name}", shape.family.body),
        rows: match role {
            EmbeddingRole::Tokens => shape.vocab,
            EmbeddingRole::Positions => shape.max_positions + offset,
            EmbeddingRole::TokenTypes => shape.token_types,
        },
        columns: shape.hidden,
        role: *role,
    };
    shape.family.embeddings.iter().map(embedding).collect()
}

/// Every tensor of a model with its shape as stored.
pub(super) fn parameter_shapes(shape: &BaseShape) -> Vec<(String, Vec<usize>)> {
    wanted(shape).into_iter().map(|wanted| (wanted.name, wanted.shape)).collect()
}

/// Every tensor that the model has, and what the files may call it.
fn wanted(shape: &BaseShape) -> Vec<Wanted> {
    let mut all = Vec::new();
    for embedding in &shape.embeddings {
        let mut wanted = stored(shape, &embedding.name, "weight", vec![embedding.rows, embedding.columns]);
        if shape.tied && embedding.role == EmbeddingRole::Tokens {
            // A tied pair is stored once, by either name.
            wanted.stored.extend(shape.family.language_model.map(|head| format!("{head}.weight")));
        }
        all.push(wanted);
    }
    for linear in shape.linears.iter().filter(|linear| !(shape.tied && linear.role == Role::Head)) {
        let (input, output) = (linear.in_features, linear.out_features);
        let weight = if linear.conv1d { vec![input, output] } else { vec![output, input] };
        let optional = linear.role.is_last() && linear.role != Role::Head;
        all.push(Wanted { optional, ..stored(shape, &linear.name, "weight", weight) });
        if linear.bias {
            all.push(Wanted { optional, ..stored(shape, &linear.name, "bias", vec![output]) });
        }
    }
    for norm in &shape.norms {
        all.push(stored(shape, &norm.name, "weight", vec![norm.width]));
        if shape.norm.kind == NormKind::Layer {
            all.push(stored(shape, &norm.name, "bias", vec![norm.width]));
        }
    }
    all
}

/// A tensor by its names: with the transformer's prefix and without, and as TensorFlow's layer norms were called.
fn stored(shape: &BaseShape, module: &str, tensor: &str, sizes: Vec<usize>) -> Wanted {
    let body = format!("{}.", shape.family.body);
    let modules = [Some(module), module.strip_prefix(&body)];
    let old = match tensor {
        _ if !module.ends_with("LayerNorm") => None,
        "weight" => Some("gamma"),
        _ => Some("beta"),
    };
    let stored = modules.into_iter().flatten();
    let stored = stored.flat_map(|module| {
        [Some(tensor), old].into_iter().flatten().map(move |tensor| format!("{module}.{tensor}"))
    });
    Wanted { name: format!("{module}.{tensor}"), stored: stored.collect(), shape: sizes, optional: false }
}

fn size(dim: Dim, shape: &BaseShape) -> usize {
    match dim {
        Dim::Hidden => shape.hidden,
        Dim::Queries => shape.queries(),
        Dim::Keys => shape.keys(),
        Dim::Qkv => shape.queries() + 2 * shape.keys(),
        Dim::Mlp => shape.mlp,
        Dim::TwoMlp => 2 * shape.mlp,
    }
}
