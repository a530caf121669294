//! Which modules of a base get an adapter: targets, exclusions, layers, and what is trained whole.

use super::{
    Care, Saved, TargetKind,
    rule::{Matcher, TargetRule, compile, is_match, name_matches},
};
use crate::{
    base::{BaseShape, EmbeddingModule, EmbeddingRole, LinearModule, Role},
    job::{AdapterSpec, FieldError},
};

/// A module that could get an adapter.
pub(super) struct Candidate<'a> {
    pub name: &'a str,
    pub in_features: usize,
    pub out_features: usize,
    layer: Option<usize>,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Linear(Role),
    Embedding(EmbeddingRole),
}

impl Candidate<'_> {
    pub fn kind(&self) -> TargetKind {
        match self.part {
            Part::Linear(_) => TargetKind::Linear,
            Part::Embedding(_) => TargetKind::Embedding,
        }
    }

    /// `all-linear` means it: it is no embedding, and belongs to the pretrained transformer.
    fn is_all_linear(&self) -> bool {
        matches!(self.part, Part::Linear(role) if !role.is_last() || role == Role::Pooler)
    }
}

fn candidates(shape: &BaseShape) -> Vec<Candidate<'_>> {
    let embedding = |embedding: &'_ EmbeddingModule| Part::Embedding(embedding.role);
    let embeddings = shape.embeddings.iter().map(|module| Candidate {
        name: &module.name,
        in_features: module.rows,
        out_features: module.columns,
        layer: None,
        part: embedding(module),
    });
    let linear = |linear: &'_ LinearModule| Part::Linear(linear.role);
    let linears = shape.linears.iter().map(|module| Candidate {
        name: &module.name,
        in_features: module.in_features,
        out_features: module.out_features,
        layer: module.layer,
        part: linear(module),
    });
    embeddings.chain(linears).collect()
}

enum Choice {
    Yes,
    No,
    Excluded,
    /// It is trained whole.
    Saved,
}

/// Applies targets, exclusions and layers.
pub(super) struct Chooser<'a> {
    adapter: &'a AdapterSpec,
    shape: &'a BaseShape,
    saved: &'a Saved,
    care: Care,
    candidates: Vec<Candidate<'a>>,
    targets: Matcher<'a>,
    exclude: Option<Matcher<'a>>,
}

impl<'a> Chooser<'a> {
    pub fn new(
        adapter: &'a AdapterSpec,
        shape: &'a BaseShape,
        saved: &'a Saved,
        care: Care,
    ) -> Result<Self, FieldError> {
        let targets =
            Matcher::new(&adapter.targets).map_err(|message| FieldError::new("adapter.targets", message))?;
        let exclude = adapter
            .exclude
            .as_ref()
            .map(Matcher::new)
            .transpose()
            .map_err(|message| FieldError::new("adapter.exclude", message))?;
        Ok(Self { adapter, shape, saved, care, candidates: candidates(shape), targets, exclude })
    }

    /// The chosen modules in the order of the modules.
    pub fn choose(mut self, errors: &mut Vec<FieldError>) -> Vec<Candidate<'a>> {
        if self.care == Care::Job {
            self.check_names("adapter.targets", Some(&self.adapter.targets), errors);
            self.check_names("adapter.exclude", self.adapter.exclude.as_ref(), errors);
            self.check_layers(errors);
        }
        let mut chosen = Vec::new();
        let (mut excluded, mut saved) = (0, 0);
        for candidate in std::mem::take(&mut self.candidates) {
            match self.wants(&candidate) {
                Ok(Choice::Yes) => chosen.push(candidate),
                Ok(Choice::Excluded) => excluded += 1,
                Ok(Choice::Saved) => saved += 1,
                Ok(Choice::No) => {}
                Err(error) => errors.push(error),
            }
        }
        for candidate in &chosen {
            if matches!(candidate.part, Part::Embedding(role) if role != EmbeddingRole::Tokens) {
                errors.push(FieldError::new("adapter.targets", format!(
                    "matches {}; of embeddings only that of tokens can have an adapter. Exclude it, or name it in \
                     `adapter.modules_to_save`",
                    candidate.name
                )));
            }
        }
        if chosen.is_empty() && errors.is_empty() {
            errors.push(FieldError::new("adapter.targets", self.nothing(excluded, saved)));
        }
        chosen
    }

    fn nothing(&self, excluded: usize, saved: usize) -> String {
        match &self.adapter.targets {
            _ if excluded > 0 => {
                "leaves nothing to train: `adapter.exclude` takes all that it matches".to_owned()
            }
            _ if saved > 0 => {
                format!("matches only what is trained whole ({})", self.saved.entries.join(", "))
            }
            TargetRule::Pattern(pattern) => {
                format!("{pattern:?} matches no layer; there are {}", existing(self.shape))
            }
            _ => "matches no layer".to_owned(),
        }
    }

    /// PEFT's `check_target_module_exists`, for one module.
    fn wants(&self, candidate: &Candidate<'_>) -> Result<Choice, FieldError> {
        let (name, all_linear) = (candidate.name, candidate.is_all_linear());
        let target = |message| FieldError::new("adapter.targets", message);
        if !self.targets.matches(name, all_linear).map_err(target)? {
            return Ok(Choice::No);
        }
        if let Some(exclude) = &self.exclude
            && exclude
                .matches(name, all_linear)
                .map_err(|message| FieldError::new("adapter.exclude", message))?
        {
            return Ok(Choice::Excluded);
        }
        if self.saved.has_module(name) {
            return Ok(Choice::Saved);
        }
        // A module that is named whole is taken whatever `layers` says.
        let named = match &self.adapter.targets {
            TargetRule::Names(names) => names.iter().any(|whole| whole == name),
            _ => false,
        };
        Ok(if named || self.in_layers(candidate)? { Choice::Yes } else { Choice::No })
    }

    fn in_layers(&self, candidate: &Candidate<'_>) -> Result<bool, FieldError> {
        let layers = &self.adapter.layers;
        if layers.is_empty() {
            return Ok(true);
        }
        let Some(layer) = candidate.layer.filter(|layer| layers.iter().any(|l| *l as usize == *layer)) else {
            return Ok(false);
        };
        self.in_list(candidate.name, layer)
    }

    /// Whether `layers_pattern` names the list that a module's layer is counted in.
    fn in_list(&self, name: &str, layer: usize) -> Result<bool, FieldError> {
        let patterns = &self.adapter.layers_pattern;
        let error = |message| FieldError::new("adapter.layers_pattern", message);
        for pattern in patterns {
            let regex = compile(pattern, &format!(r"\A(?:.*?\.)?(?:{pattern})\.{layer}\.")).map_err(error)?;
            if is_match(&regex, name).map_err(error)? {
                return Ok(true);
            }
        }
        Ok(patterns.is_empty())
    }

    /// Every name must match something: a misspelt one would silently train less, or more, than was asked for.
    fn check_names(&self, path: &str, rule: Option<&'a TargetRule>, errors: &mut Vec<FieldError>) {
        let matching = |name: &'a str| self.candidates.iter().filter(move |c| name_matches(name, c.name));
        let names = match rule {
            Some(TargetRule::Names(names)) => names,
            Some(TargetRule::Pattern(pattern)) if path == "adapter.exclude" => {
                // What targets match nothing is told by `choose`.
                let matched = self.exclude.as_ref().is_some_and(|exclude| {
                    self.candidates.iter().any(|c| exclude.matches(c.name, false).unwrap_or(true))
                });
                if !matched {
                    let message = format!("{pattern:?} matches no layer; there are {}", existing(self.shape));
                    errors.push(FieldError::new(path, message));
                }
                return;
            }
            _ => return,
        };
        let unmatched: Vec<_> = names
            .iter()
            .filter(|name| matching(name).next().is_none())
            .map(|name| format!("{name:?}"))
            .collect();
        if !unmatched.is_empty() {
            let verb = if unmatched.len() == 1 { "matches" } else { "match" };
            let message = format!(
                "{} {verb} no linear layer; there are {}",
                unmatched.join(", "),
                existing(self.shape)
            );
            errors.push(FieldError::new(path, message));
        }
        for name in names.iter().filter(|_| path == "adapter.targets") {
            if matching(name).next().is_some() && matching(name).all(|c| self.saved.has_module(c.name)) {
                let message = format!(
                    "{name:?} matches only what is trained whole ({}); leave it out here, or in `adapter.modules_to_save`",
                    self.saved.entries.join(", ")
                );
                errors.push(FieldError::new(path, message));
            }
        }
    }

    fn check_layers(&self, errors: &mut Vec<FieldError>) {
        let last = self.shape.layers.saturating_sub(1);
        for layer in self.adapter.layers.iter().filter(|layer| **layer as usize > last) {
            let message = format!("has {layer}; the base's layers are 0 to {last}");
            errors.push(FieldError::new("adapter.layers", message));
        }
        let in_list =
            |c: &Candidate<'_>| c.layer.is_some_and(|layer| self.in_list(c.name, layer).unwrap_or(true));
        if !self.candidates.iter().any(in_list) {
            let (patterns, list) = (self.adapter.layers_pattern.join(", "), self.shape.layer_list());
            let message = format!("{patterns} names no list of layers; the base's are in {list:?}");
            errors.push(FieldError::new("adapter.layers_pattern", message));
        }
    }
}

/// The distinct last parts of the names of a transformer's linear layers, in order.
fn existing(shape: &BaseShape) -> String {
    let mut names: Vec<&str> = Vec::new();
    for linear in shape.linears.iter().filter(|linear| !linear.role.is_last()) {
        let name = linear.name.rsplit('.').next().unwrap_or(&linear.name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}
