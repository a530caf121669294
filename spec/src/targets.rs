//! Which linear layers get an adapter, of which rank and scale: PEFT's rules for names, patterns and ranks.

use std::fmt::Write as _;

use fancy_regex::{Regex, RegexBuilder};

use crate::{
    base::{BaseShape, LinearModule},
    job::{AdapterSpec, FieldError},
};

/// The word for all linear layers but the output head.
pub const ALL_LINEAR: &str = "all-linear";
/// Steps that matching one name against one pattern may take back before it is given up.
const BACKTRACK_LIMIT: usize = 100_000;
/// Bytes of one pattern.
const MAX_PATTERN: usize = 4096;

/// One linear layer that gets an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The module's whole name: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Columns of its weight: A is rank × in_features.
    pub in_features: usize,
    /// Rows of its weight: B is out_features × rank.
    pub out_features: usize,
    /// The rank there.
    pub rank: usize,
    /// The alpha there.
    pub alpha: f64,
    /// What the adapter's output is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub scale: f64,
}

impl Target {
    /// Parameters of its A and B.
    pub fn parameters(&self) -> u64 {
        self.rank as u64 * (self.in_features + self.out_features) as u64
    }
}

/// How modules are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetRule {
    /// Every linear layer but the output head.
    AllLinear,
    /// Whole names of modules, or what they end with after a dot.
    Names(Vec<String>),
    /// A regular expression that matches whole names.
    Pattern(String),
}

impl TargetRule {
    /// Reads entries of a job: `all-linear` alone, names, or one regular expression.
    ///
    /// One entry is a regular expression when it has a character that no module's name has; PEFT tells them apart by
    /// type (text or list), which a message cannot.
    ///
    /// # Errors
    /// What is wrong with the entries.
    pub fn parse(entries: &[String]) -> Result<Self, String> {
        let is_name = |entry: &String| {
            !entry.is_empty() && entry.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        match entries {
            [] => Err("is empty; name layers, or write all-linear".to_owned()),
            [one] if one.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Self::AllLinear),
            [one] if !is_name(one) => {
                whole(one)?;
                Ok(Self::Pattern(one.clone()))
            }
            names => {
                if names.iter().any(|name| name.eq_ignore_ascii_case(ALL_LINEAR)) {
                    return Err(format!("has {ALL_LINEAR} beside other entries; it stands alone"));
                }
                if let Some(other) = names.iter().find(|name| !is_name(name)) {
                    return Err(format!(
                        "has {other:?}, which is no name; a regular expression stands alone"
                    ));
                }
                Ok(Self::Names(names.to_vec()))
            }
        }
    }
}

/// Whether a pattern of `rank_pattern` or `alpha_pattern` can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    suffix(pattern).map(|_| ())
}

/// The layers of a base that a job's adapter trains, in the order of the modules.
///
/// # Errors
/// Every reason why the adapter does not fit the base: a target that matches nothing (with what exists), a layer
/// index beyond the last, a rank larger than a layer's smaller side, nothing left to train.
pub fn resolve(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Vec<Target>, Vec<FieldError>> {
    let mut errors = Vec::new();
    let chosen = match Chooser::new(adapter, shape) {
        Ok(chooser) => chooser.choose(&mut errors),
        Err(error) => return Err(vec![error]),
    };
    let ranks = Patterns::new(&adapter.rank_pattern, "adapter.rank_pattern", &mut errors);
    let alphas = Patterns::new(&adapter.alpha_pattern, "adapter.alpha_pattern", &mut errors);
    let mut targets = Vec::with_capacity(chosen.len());
    for linear in chosen {
        let (rank_path, rank) =
            ranks.get(&linear.name, &mut errors).unwrap_or(("adapter.rank".into(), adapter.rank));
        let (_, alpha) =
            alphas.get(&linear.name, &mut errors).unwrap_or_else(|| (String::new(), adapter.alpha));
        let side = linear.in_features.min(linear.out_features);
        if rank as usize > side {
            errors.push(FieldError::new(
                rank_path,
                format!("is {rank}, larger than the smaller side of {} ({side})", linear.name),
            ));
        }
        let divisor = if adapter.rslora { f64::from(rank).sqrt() } else { f64::from(rank) };
        targets.push(Target {
            module: linear.name.clone(),
            in_features: linear.in_features,
            out_features: linear.out_features,
            rank: rank as usize,
            alpha,
            scale: alpha / divisor,
        });
    }
    if errors.is_empty() { Ok(targets) } else { Err(merge(errors)) }
}

/// One error for each path: a rank too large for one layer is too large for its likes in every other block.
fn merge(errors: Vec<FieldError>) -> Vec<FieldError> {
    let mut merged: Vec<(FieldError, usize)> = Vec::new();
    for error in errors {
        match merged.iter_mut().find(|(known, _)| known.path == error.path) {
            Some((_, more)) => *more += 1,
            None => merged.push((error, 0)),
        }
    }
    merged
        .into_iter()
        .map(|(mut error, more)| {
            if more > 0 {
                let _ = write!(error.message, "; and {more} more like this");
            }
            error
        })
        .collect()
}

/// Applies targets, exclusions and layers.
struct Chooser<'a> {
    adapter: &'a AdapterSpec,
    shape: &'a BaseShape,
    targets: Matcher<'a>,
    exclude: Option<Matcher<'a>>,
}

impl<'a> Chooser<'a> {
    fn new(adapter: &'a AdapterSpec, shape: &'a BaseShape) -> Result<Self, FieldError> {
        let targets =
            Matcher::new(&adapter.targets).map_err(|message| FieldError::new("adapter.targets", message))?;
        let exclude = adapter
            .exclude
            .as_ref()
            .map(Matcher::new)
            .transpose()
            .map_err(|message| FieldError::new("adapter.exclude", message))?;
        Ok(Self { adapter, shape, targets, exclude })
    }

    fn choose(&self, errors: &mut Vec<FieldError>) -> Vec<&'a LinearModule> {
        self.check_names(errors);
        self.check_layers(errors);
        let mut chosen = Vec::new();
        let mut excluded = 0;
        for linear in &self.shape.linears {
            match self.wants(linear) {
                Ok(Choice::Yes) if linear.role.is_last() => errors.push(FieldError::new(
                    "adapter.targets",
                    format!(
                        "matches the output head {}, which cannot be trained yet; exclude it",
                        linear.name
                    ),
                )),
                Ok(Choice::Yes) => chosen.push(linear),
                Ok(Choice::Excluded) => excluded += 1,
                Ok(Choice::No) => {}
                Err(error) => errors.push(error),
            }
        }
        if chosen.is_empty() && errors.is_empty() {
            let message = match &self.adapter.targets {
                _ if excluded > 0 => {
                    "leaves nothing to train: `adapter.exclude` takes all that it matches".to_owned()
                }
                TargetRule::Pattern(pattern) => {
                    format!("{pattern:?} matches no layer; there are {}", self.existing())
                }
                _ => "matches no layer".to_owned(),
            };
            errors.push(FieldError::new("adapter.targets", message));
        }
        chosen
    }

    /// PEFT's `check_target_module_exists`, for one linear layer.
    fn wants(&self, linear: &LinearModule) -> Result<Choice, FieldError> {
        if !self.targets.matches(linear).map_err(|message| FieldError::new("adapter.targets", message))? {
            return Ok(Choice::No);
        }
        if let Some(exclude) = &self.exclude
            && exclude.matches(linear).map_err(|message| FieldError::new("adapter.exclude", message))?
        {
            return Ok(Choice::Excluded);
        }
        // A module that is named whole is taken whatever `layers` says.
        let named = matches!(&self.adapter.targets, TargetRule::Names(names) if names.contains(&linear.name));
        let in_layers = self.adapter.layers.is_empty()
            || linear.layer.is_some_and(|layer| self.adapter.layers.iter().any(|l| *l as usize == layer));
        Ok(if named || in_layers { Choice::Yes } else { Choice::No })
    }

    /// Every name must match something: a misspelt one would silently train less than was asked for.
    fn check_names(&self, errors: &mut Vec<FieldError>) {
        let TargetRule::Names(names) = &self.adapter.targets else { return };
        let unmatched: Vec<_> = names
            .iter()
            .filter(|name| !self.shape.linears.iter().any(|linear| name_matches(name, &linear.name)))
            .map(|name| format!("{name:?}"))
            .collect();
        if !unmatched.is_empty() {
            let verb = if unmatched.len() == 1 { "matches" } else { "match" };
            let message =
                format!("{} {verb} no linear layer; there are {}", unmatched.join(", "), self.existing());
            errors.push(FieldError::new("adapter.targets", message));
        }
    }

    fn check_layers(&self, errors: &mut Vec<FieldError>) {
        let last = self.shape.layers.saturating_sub(1);
        for layer in self.adapter.layers.iter().filter(|layer| **layer as usize > last) {
            let message = format!("has {layer}; the base's layers are 0 to {last}");
            errors.push(FieldError::new("adapter.layers", message));
        }
    }

    /// The distinct last parts of the layers' names, in order.
    fn existing(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for linear in self.shape.linears.iter().filter(|linear| !linear.role.is_last()) {
            let name = linear.name.rsplit('.').next().unwrap_or(&linear.name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }
}

enum Choice {
    Yes,
    No,
    Excluded,
}

enum Matcher<'a> {
    AllLinear,
    Names(&'a [String]),
    Pattern(Regex),
}

impl<'a> Matcher<'a> {
    fn new(rule: &'a TargetRule) -> Result<Self, String> {
        Ok(match rule {
            TargetRule::AllLinear => Self::AllLinear,
            TargetRule::Names(names) => Self::Names(names),
            TargetRule::Pattern(pattern) => Self::Pattern(whole(pattern)?),
        })
    }

    fn matches(&self, linear: &LinearModule) -> Result<bool, String> {
        match self {
            Self::AllLinear => Ok(!linear.role.is_last()),
            Self::Names(names) => Ok(names.iter().any(|name| name_matches(name, &linear.name))),
            Self::Pattern(regex) => is_match(regex, &linear.name),
        }
    }
}

/// Values by pattern: the first pattern that matches a module's name gives its value.
struct Patterns<'a, T> {
    path: &'static str,
    entries: Vec<(&'a str, Regex, T)>,
}

impl<'a, T: Copy> Patterns<'a, T> {
    fn new(patterns: &'a [(String, T)], path: &'static str, errors: &mut Vec<FieldError>) -> Self {
        let mut entries = Vec::with_capacity(patterns.len());
        for (pattern, value) in patterns {
            match suffix(pattern) {
                Ok(regex) => entries.push((pattern.as_str(), regex, *value)),
                Err(message) => errors.push(FieldError::new(format!("{path}.{pattern}"), message)),
            }
        }
        Self { path, entries }
    }

    fn get(&self, module: &str, errors: &mut Vec<FieldError>) -> Option<(String, T)> {
        for (pattern, regex, value) in &self.entries {
            let path = || format!("{}.{pattern}", self.path);
            match is_match(regex, module) {
                Ok(true) => return Some((path(), *value)),
                Ok(false) => {}
                Err(message) => errors.push(FieldError::new(path(), message)),
            }
        }
        None
    }
}

fn name_matches(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Python's `re.fullmatch(pattern, …)`.
fn whole(pattern: &str) -> Result<Regex, String> {
    compile(pattern, &format!(r"\A(?:{pattern})\z"))
}

/// PEFT's `re.match(rf"(.*\.)?({pattern})$", …)`; module names have no line breaks.
fn suffix(pattern: &str) -> Result<Regex, String> {
    compile(pattern, &format!(r"\A(.*\.)?({pattern})\z"))
}

fn compile(pattern: &str, full: &str) -> Result<Regex, String> {
    if pattern.is_empty() {
        return Err("has an empty pattern".to_owned());
    }
    if pattern.len() > MAX_PATTERN {
        return Err(format!("has a pattern of {} bytes; {MAX_PATTERN} are allowed", pattern.len()));
    }
    // Alone first: `a)|(b` must not become valid by what is put around it.
    Regex::new(pattern)
        .and_then(|_| RegexBuilder::new(full).backtrack_limit(BACKTRACK_LIMIT).build())
        .map_err(|error| format!("{pattern:?} is no regular expression: {error}"))
}

fn is_match(regex: &Regex, module: &str) -> Result<bool, String> {
    regex
        .is_match(module)
        .map_err(|error| format!("has a pattern too costly to match against {module}: {error}"))
}

#[cfg(test)]
mod tests;
