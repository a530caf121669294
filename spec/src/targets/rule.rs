//! Names and patterns of modules, matched as PEFT matches them.

use fancy_regex::{Regex, RegexBuilder};

use crate::job::FieldError;

/// The word for all linear layers of the transformer.
pub const ALL_LINEAR: &str = "all-linear";
/// Steps that matching one name against one pattern may take back before it is given up.
const BACKTRACK_LIMIT: usize = 100_000;
/// Bytes of one pattern.
const MAX_PATTERN: usize = 4096;

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

/// A rule, ready to be matched.
pub(super) enum Matcher<'a> {
    AllLinear,
    Names(&'a [String]),
    Pattern(Regex),
}

impl<'a> Matcher<'a> {
    pub fn new(rule: &'a TargetRule) -> Result<Self, String> {
        Ok(match rule {
            TargetRule::AllLinear => Self::AllLinear,
            TargetRule::Names(names) => Self::Names(names),
            TargetRule::Pattern(pattern) => Self::Pattern(whole(pattern)?),
        })
    }

    /// Whether a module of that name is meant, which is a linear layer of the transformer itself or is not.
    pub fn matches(&self, name: &str, all_linear: bool) -> Result<bool, String> {
        match self {
            Self::AllLinear => Ok(all_linear),
            Self::Names(names) => Ok(names.iter().any(|wanted| name_matches(wanted, name))),
            Self::Pattern(regex) => is_match(regex, name),
        }
    }
}

/// Values by pattern: the first pattern that matches a module's name gives its value.
pub(super) struct Patterns<'a, T> {
    path: &'static str,
    entries: Vec<Entry<'a, T>>,
}

struct Entry<'a, T> {
    pattern: &'a str,
    regex: Regex,
    value: T,
    used: bool,
}

impl<'a, T: Copy> Patterns<'a, T> {
    pub fn new(patterns: &'a [(String, T)], path: &'static str, errors: &mut Vec<FieldError>) -> Self {
        let mut entries = Vec::with_capacity(patterns.len());
        for (pattern, value) in patterns {
            match suffix(pattern) {
                Ok(regex) => entries.push(Entry { pattern, regex, value: *value, used: false }),
                Err(message) => errors.push(FieldError::new(format!("{path}.{pattern}"), message)),
            }
        }
        Self { path, entries }
    }

    /// The value for a module, with the path of the field that gives it.
    pub fn get(&mut self, module: &str, errors: &mut Vec<FieldError>) -> Option<(String, T)> {
        let mut found = None;
        for entry in &mut self.entries {
            let path = format!("{}.{}", self.path, entry.pattern);
            match is_match(&entry.regex, module) {
                Ok(true) => {
                    entry.used = true;
                    found.get_or_insert((path, entry.value));
                }
                Ok(false) => {}
                Err(message) => errors.push(FieldError::new(path, message)),
            }
        }
        found
    }

    /// Patterns that matched none of the modules that were asked for.
    pub fn unused(&self) -> impl Iterator<Item = FieldError> {
        self.entries.iter().filter(|entry| !entry.used).map(|entry| {
            let path = format!("{}.{}", self.path, entry.pattern);
            FieldError::new(path, "matches none of the modules that get an adapter")
        })
    }
}

/// PEFT's rule for names in a list: the whole name, or what it ends with after a dot.
pub(super) fn name_matches(name: &str, module: &str) -> bool {
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

pub(super) fn compile(pattern: &str, full: &str) -> Result<Regex, String> {
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

pub(super) fn is_match(regex: &Regex, module: &str) -> Result<bool, String> {
    regex
        .is_match(module)
        .map_err(|error| format!("has a pattern too costly to match against {module}: {error}"))
}
