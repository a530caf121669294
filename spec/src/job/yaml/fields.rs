//! Reads single fields of the job file, and says what is wrong with each.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{PRIORITIES, Reader, SECTIONS, SOURCE_FIELDS, Section, join, kind};
use crate::job::{FieldError, file_path};

impl Reader {
    pub(super) fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    pub(super) fn wrong_type(&mut self, path: String, wanted: &str, value: &Value) {
        self.error(path, format!("must be {wanted}, not {}", kind(value)));
    }

    pub(super) fn section<'a>(&mut self, parent: &Section<'a>, field: &'static str) -> Option<Section<'a>> {
        let value = parent.fields.get(field).filter(|value| !value.is_null())?;
        let Value::Object(fields) = value else {
            self.wrong_type(parent.path(field), "fields with values", value);
            return None;
        };
        let section = Section { path: field, fields };
        self.unknown_fields(&section);
        Some(section)
    }

    pub(super) fn string(&mut self, section: &Section<'_>, field: &str) -> Option<String> {
        match section.get(field)? {
            Value::String(text) => Some(text.clone()),
            // `name: 2024` and `sha256: 123…` are texts to whoever wrote them.
            Value::Number(number) => Some(number.to_string()),
            other => {
                self.wrong_type(section.path(field), "a text", other);
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, section: &Section<'_>, field: &str) -> Option<bool> {
        let value = section.get(field)?;
        if value.as_bool().is_none() {
            self.wrong_type(section.path(field), "true or false", value);
        }
        value.as_bool()
    }

    pub(super) fn number(&mut self, section: &Section<'_>, field: &str) -> Option<f64> {
        let value = section.get(field)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        if number.is_none() {
            self.wrong_type(section.path(field), "a finite number", value);
        }
        number
    }

    /// A number above 0; 0 when absent, which [`fill_defaults`] replaces.
    pub(super) fn positive(&mut self, section: &Section<'_>, field: &str) -> f64 {
        match self.number(section, field) {
            Some(number) if number <= 0.0 => {
                self.error(section.path(field), format!("is {number}; it must be above 0"));
                0.0
            }
            number => number.unwrap_or_default(),
        }
    }

    pub(super) fn whole(&mut self, section: &Section<'_>, field: &str, min: u64, max: u64) -> Option<u64> {
        let value = section.get(field)?;
        let Some(number) = value.as_u64() else {
            let wanted = format!("a whole number, at least {min}");
            match value {
                Value::Number(number) => {
                    self.error(section.path(field), format!("is {number}; it must be {wanted}"))
                }
                other => self.wrong_type(section.path(field), &wanted, other),
            }
            return None;
        };
        if number < min {
            self.error(section.path(field), format!("is {number}; it must be at least {min}"));
        } else if number > max {
            self.error(section.path(field), format!("is {number}; it must be at most {max}"));
        }
        (min..=max).contains(&number).then_some(number)
    }

    pub(super) fn whole32(&mut self, section: &Section<'_>, field: &str, min: u64) -> Option<u32> {
        self.whole(section, field, min, u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok())
    }

    /// A number or one of a few words.
    pub(super) fn priority(&mut self, section: &Section<'_>) -> Option<i32> {
        if section.get("priority").is_some_and(Value::is_string) {
            return Some(self.choice(section, "priority", PRIORITIES));
        }
        self.integer(section, "priority")
    }

    /// A whole number, which may be negative.
    pub(super) fn integer(&mut self, section: &Section<'_>, field: &str) -> Option<i32> {
        let value = section.get(field)?;
        let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
        if number.is_none() {
            self.wrong_type(section.path(field), "a whole number", value);
        }
        number
    }

    /// One text, or a list of them.
    pub(super) fn strings(&mut self, section: &Section<'_>, field: &str) -> Vec<String> {
        match section.get(field) {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    match item {
                        Value::String(text) => texts.push(text.clone()),
                        other => self.wrong_type(format!("{}[{i}]", section.path(field)), "a text", other),
                    }
                }
                texts
            }
            Some(other) => {
                self.wrong_type(section.path(field), "a text or a list of texts", other);
                Vec::new()
            }
        }
    }

    /// One layer index, or a list of them.
    pub(super) fn layers(&mut self, section: &Section<'_>) -> Vec<u32> {
        let path = section.path("layers");
        let items = match section.get("layers") {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut layers = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match item.as_u64().and_then(|layer| u32::try_from(layer).ok()) {
                Some(layer) => layers.push(layer),
                None => self.wrong_type(format!("{path}[{i}]"), "a layer's index, from 0", item),
            }
        }
        layers
    }

    pub(super) fn pattern<T>(
        &mut self,
        section: &Section<'_>,
        field: &'static str,
        mut one: impl FnMut(&mut Self, &Section<'_>, &str) -> Option<T>,
    ) -> Vec<T> {
        let fields = match section.get(field) {
            None => return Vec::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                self.wrong_type(section.path(field), "patterns with values", other);
                return Vec::new();
            }
        };
        let path = if field == "rank_pattern" { "adapter.rank_pattern" } else { "adapter.alpha_pattern" };
        let patterns = Section { path, fields };
        fields.keys().filter_map(|pattern| one(self, &patterns, pattern)).collect()
    }

    /// A base or an adapter: a path, or what an earlier upload is named by.
    pub(super) fn source(&mut self, section: &Section<'_>, field: &str) -> Option<(String, String)> {
        let value = section.get(field)?;
        self.one_source(section.path(field), value)
    }

    /// The files of a data set: one path, or a list of them.
    pub(super) fn sources(&mut self, section: &Section<'_>, field: &str) -> Vec<(String, String)> {
        let path = section.path(field);
        match section.get(field) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                let items = items.iter().enumerate();
                items.filter_map(|(i, item)| self.one_source(file_path(&path, i, usize::MAX), item)).collect()
            }
            Some(one) => self.one_source(path, one).into_iter().collect(),
        }
    }

    fn one_source(&mut self, path: String, value: &Value) -> Option<(String, String)> {
        match value {
            Value::String(text) => Some((text.clone(), String::new())),
            Value::Object(fields) => {
                let source = Section { path: &path, fields };
                self.unknown_in(&source, SOURCE_FIELDS);
                let (text, sha256) = (self.string(&source, "source"), self.string(&source, "sha256"));
                Some((text.unwrap_or_default(), sha256.unwrap_or_default()))
            }
            other => {
                self.wrong_type(path, "a path", other);
                None
            }
        }
    }

    /// Texts by name.
    pub(super) fn texts_by_name(&mut self, section: &Section<'_>, field: &str) -> BTreeMap<String, String> {
        let path = section.path(field);
        match section.get(field) {
            None => BTreeMap::new(),
            Some(Value::Object(fields)) => {
                let names = Section { path: &path, fields };
                fields.keys().filter_map(|name| Some((name.clone(), self.string(&names, name)?))).collect()
            }
            Some(other) => {
                self.wrong_type(path, "names with texts", other);
                BTreeMap::new()
            }
        }
    }

    /// One of a few words, as the number of its enum value; 0 (unspecified) when absent.
    pub(super) fn choice(&mut self, section: &Section<'_>, field: &str, words: &[(&str, i32)]) -> i32 {
        let Some(value) = section.get(field) else { return 0 };
        let known = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if known.is_none() {
            let names: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let given = value.as_str().map_or_else(|| value.to_string(), |text| format!("`{text}`"));
            self.error(section.path(field), format!("is {given}; it must be {}", names.join(" or ")));
        }
        known.map_or(0, |(_, number)| *number)
    }

    // === unknown fields ===

    pub(super) fn unknown_fields(&mut self, section: &Section<'_>) {
        let known =
            SECTIONS.iter().find(|(path, _)| *path == section.path).map_or(&[][..], |(_, fields)| fields);
        self.unknown_in(section, known);
    }

    pub(super) fn unknown_in(&mut self, section: &Section<'_>, known: &[&str]) {
        let place =
            if section.path.is_empty() { "a job file".to_owned() } else { format!("`{}`", section.path) };
        for field in section.fields.keys().filter(|field| !known.contains(&field.as_str())) {
            let hint = match suggestion(field, known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("its fields are {}", known.join(", ")),
            };
            self.error(section.path(field), format!("is not a field of {place}; {hint}"));
        }
    }
}

/// The field that was probably meant: the nearest name beside it, or the same name in another section.
fn suggestion(field: &str, known: &[&str]) -> Option<String> {
    let near = known
        .iter()
        .map(|name| (strsim::jaro_winkler(field, name), *name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.8);
    let elsewhere = || {
        let (section, _) =
            SECTIONS.iter().find(|(path, fields)| !path.is_empty() && fields.contains(&field))?;
        Some(join(section, field))
    };
    let top =
        || SECTIONS[0].1.contains(&field).then(|| format!("{field}` at the top of the file, not `{field}"));
    near.map(|(_, name)| name.to_owned()).or_else(elsewhere).or_else(top)
}
