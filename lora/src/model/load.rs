//! Builds the transformer that a base's shape describes, out of its files.

use std::collections::HashMap;
use std::path::Path;

use lorafleet_spec::BaseShape;
use lorafleet_spec::base::{
    EmbeddingRole, HeadShape, LinearModule, NormKind, NormRole, Placement, Positions, Role,
};
use lorafleet_spec::job::Precision;

use super::ModelError;
use super::attention_part::AttentionPart;
use super::block::Block;
use super::classifier::ClassifierHead;
use super::embed::{Embed, Learned, TokenTable};
use super::frame::Frame;
use super::known::Known;
use super::lm_head::LmHead;
use super::mlp_part::MlpPart;
use super::parameters::{FrozenNorm, LinearId, NormId, Parameters};
use super::projection::Projection;
use super::transformer::{Head, Parts};
use super::weights::Weights;
use crate::linear::FrozenLinear;

/// Reads the weights of a base of that shape from its folder; those of linear layers are held in that precision.
pub(super) fn load(dir: &Path, shape: &BaseShape, precision: Precision) -> Result<Parts, ModelError> {
    let loader = Loader { shape, weights: Weights::open(dir, shape)?, precision };
    let embed = loader.embed()?;
    let parameters = Parameters { linears: loader.linears(&embed)?, norms: loader.norms()? };
    let blocks = (0..shape.layers).map(|layer| loader.block(layer)).collect::<Result<_, _>>()?;
    Ok(Parts { parameters, embed: loader.tie(embed)?, blocks, head: loader.head()?, known: loader.known() })
}

struct Loader<'a> {
    shape: &'a BaseShape,
    weights: Weights<'a>,
    precision: Precision,
}

impl Loader<'_> {
    /// Every linear layer, in the order of the modules.
    fn linears(&self, embed: &Embed) -> Result<Vec<FrozenLinear>, ModelError> {
        self.shape.linears.iter().map(|module| self.linear(module, embed)).collect()
    }

    fn linear(&self, module: &LinearModule, embed: &Embed) -> Result<FrozenLinear, ModelError> {
        let bias = module.bias.then(|| self.weights.read(&format!("{}.bias", module.name))).transpose()?;
        let (name, outputs) = (module.name.clone(), module.out_features);
        if module.role == Role::Head && self.shape.tied {
            let TokenTable::Rows(rows) = &embed.tokens else {
                return Err(ModelError::Tensor { name, message: "is tied to itself".to_owned() });
            };
            return Ok(FrozenLinear::new(name, rows, outputs, bias, self.precision)
                .tied_to(&format!("{}.weight", embed.name)));
        }
        let weight = self.weights.read(&format!("{}.weight", module.name))?;
        let new = if module.conv1d { FrozenLinear::conv1d } else { FrozenLinear::new };
        Ok(new(name, &weight, outputs, bias, self.precision))
    }

    /// Every norm, in the order of the modules.
    fn norms(&self) -> Result<Vec<FrozenNorm>, ModelError> {
        let norm = |name: &String| {
            let kind = self.shape.norm.kind;
            let has_bias = kind == NormKind::Layer;
            let bias = has_bias.then(|| self.weights.read(&format!("{name}.bias"))).transpose()?;
            let weight = self.weights.read(&format!("{name}.weight"))?;
            Ok(FrozenNorm { name: name.clone(), kind, eps: self.shape.norm.eps as f32, weight, bias })
        };
        self.shape.norms.iter().map(|module| norm(&module.name)).collect()
    }

    /// The embeddings, the tokens' in a table of their own.
    fn embed(&self) -> Result<Embed, ModelError> {
        let shape = self.shape;
        let read = |name: &str| self.weights.read(&format!("{name}.weight"));
        let learned = |role, offset| -> Result<Option<Learned>, ModelError> {
            let Some(module) = shape.embedding_at(role) else { return Ok(None) };
            Ok(Some(Learned { name: format!("{}.weight", module.name), values: read(&module.name)?, offset }))
        };
        let tokens = shape.embedding_at(EmbeddingRole::Tokens).ok_or_else(|| missing("a token embedding"))?;
        let offset = match shape.positions {
            Positions::Learned { offset } => offset,
            Positions::Rope(_) => 0,
        };
        Ok(Embed {
            name: tokens.name.clone(),
            tokens: TokenTable::Rows(read(&tokens.name)?),
            vocabulary: tokens.rows,
            hidden: shape.hidden,
            scale: shape.embedding_scale as f32,
            positions: learned(EmbeddingRole::Positions, offset)?,
            types: learned(EmbeddingRole::TokenTypes, 0)?,
            norm: self.norm_at(None, NormRole::Embedding),
        })
    }

    /// Where the head is tied to the token vectors, only the head keeps them.
    fn tie(&self, embed: Embed) -> Result<Embed, ModelError> {
        match (self.shape.tied, self.linear_at(None, Role::Head)) {
            (true, Some(head)) => Ok(Embed { tokens: TokenTable::Head(head), ..embed }),
            _ => Ok(embed),
        }
    }

    fn block(&self, layer: usize) -> Result<Block, ModelError> {
        let (shape, at) = (self.shape, Some(layer));
        let kind = shape.layer_kinds[layer];
        let frame = |before, after| {
            let (before, after) = (self.norm_at(at, before), self.norm_at(at, after));
            match (shape.placement, before, after) {
                (Placement::Before, Some(_), None)
                | (Placement::Around, Some(_), Some(_))
                | (Placement::After, None, Some(_)) => {
                    Ok(Frame { placement: shape.placement, before, after })
                }
                _ => Err(missing("the norms that its family has")),
            }
        };
        let head_norms = match (self.norm_at(at, NormRole::Q), self.norm_at(at, NormRole::K)) {
            (Some(q), Some(k)) => Some([q, k]),
            _ => None,
        };
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let attention = AttentionPart {
            frame: frame(NormRole::BeforeAttention, NormRole::AfterAttention)?,
            qkv: match self.linear_at(at, Role::Qkv) {
                Some(fused) => Projection::fused(fused, vec![queries, keys, keys]),
                None => self.separate(at, &[Role::Q, Role::K, Role::V])?,
            },
            head_norms,
            output: self.separate(at, &[Role::O])?,
            rope: matches!(shape.positions, Positions::Rope(_)).then_some(kind.rope),
            window: kind.window,
        };
        let mlp = MlpPart {
            frame: frame(NormRole::BeforeMlp, NormRole::AfterMlp)?,
            inner: match self.linear_at(at, Role::GateUp) {
                Some(fused) => Projection::separate(vec![fused]),
                None if shape.gated => self.separate(at, &[Role::Gate, Role::Up])?,
                None => self.separate(at, &[Role::Up])?,
            },
            gated: shape.gated,
            activation: shape.activation,
            output: self.separate(at, &[Role::Down])?,
        };
        Ok(Block { attention, mlp })
    }

    fn head(&self) -> Result<Head, ModelError> {
        let (shape, norm) = (self.shape, self.norm_at(None, NormRole::Final));
        match shape.head {
            HeadShape::LanguageModel => Ok(Head::LanguageModel(LmHead {
                norm,
                linear: self.linear_at(None, Role::Head).ok_or_else(|| missing("an output head"))?,
                softcap: shape.final_softcap.map(|cap| cap as f32),
                vocabulary: shape.vocab,
            })),
            HeadShape::Classifier { labels, token, dense } => {
                let dense = match dense {
                    Some(dense) => Some((self.separate(None, &[dense.role])?, dense.activation)),
                    None => None,
                };
                let output = self.separate(None, &[Role::Classifier])?;
                Ok(Head::Classifier(ClassifierHead { norm, dense, output, labels }, token))
            }
        }
    }

    /// The sizes of every module and tensor, by name, to check adapters against.
    fn known(&self) -> Known {
        let linears = self.shape.linears.iter().map(|l| (l.name.clone(), (l.in_features, l.out_features)));
        let tokens = self.shape.embedding_at(EmbeddingRole::Tokens);
        Known {
            linears: linears.collect(),
            embedding: tokens.map(|e| (e.name.clone(), (e.rows, e.columns))),
            tensors: self.shape.parameter_shapes().into_iter().collect::<HashMap<_, _>>(),
        }
    }

    fn linear_at(&self, layer: Option<usize>, role: Role) -> Option<LinearId> {
        self.shape.linears.iter().position(|l| l.layer == layer && l.role == role).map(LinearId)
    }

    fn norm_at(&self, layer: Option<usize>, role: NormRole) -> Option<NormId> {
        self.shape.norms.iter().position(|n| n.layer == layer && n.role == role).map(NormId)
    }

    fn separate(&self, layer: Option<usize>, roles: &[Role]) -> Result<Projection, ModelError> {
        let id = |&role| self.linear_at(layer, role).ok_or_else(|| missing(&format!("a layer for {role:?}")));
        Ok(Projection::separate(roles.iter().map(id).collect::<Result<_, _>>()?))
    }
}

fn missing(what: &str) -> ModelError {
    ModelError::Tensor { name: "of the base".to_owned(), message: format!("list lacks {what}") }
}
