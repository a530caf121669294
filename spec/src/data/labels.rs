//! Labels of texts: which classes a data set has, and which of them a row names; or numbers to be predicted.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use serde_json::Value;

use super::example::Target;

/// Classes that a data set may have; more are a mistake (a column of texts).
const MAX_CLASSES: usize = 10_000;
/// Labels shown in a message.
const SHOWN: usize = 12;

/// A label as its row gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// A name.
    Text(String),
    /// An integer: a class by its number, or by a name that happens to be one.
    Int(i64),
    /// A number with a fraction, which makes the data set one of scores.
    Float(f64),
}

impl Label {
    /// A label from a row's value; `typed` is false where all values are texts, so that numbers look like them.
    ///
    /// # Errors
    /// What the value is instead, as the end of a sentence.
    pub fn read(value: Value, typed: bool) -> Result<Self, String> {
        match value {
            Value::String(text) => {
                let text = text.trim();
                if text.is_empty() {
                    return Err("is empty".to_owned());
                }
                let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
                Ok(match (typed, text.parse::<i64>(), number(text)) {
                    // `007` is a name.
                    (false, Ok(int), _) if int.to_string() == text => Self::Int(int),
                    (false, Err(_), Some(float)) if text.contains(|c: char| c.is_ascii_digit()) => {
                        Self::Float(float)
                    }
                    _ => Self::Text(text.to_owned()),
                })
            }
            Value::Bool(yes) => Ok(Self::Text(yes.to_string())),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(int), _) => Ok(Self::Int(int)),
                (None, Some(float)) => Ok(Self::Float(float)),
                (None, None) => Err("is too large a number".to_owned()),
            },
            Value::Array(_) => Err("is a list; one label for a text is learned".to_owned()),
            Value::Object(_) => Err("is an object".to_owned()),
            Value::Null => Err("is null".to_owned()),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(int) => write!(f, "{int}"),
            Self::Float(float) => write!(f, "{float}"),
        }
    }
}

impl Label {
    /// What two labels that mean the same have in common.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Float(float) => format!("{float:?}"),
            other => other.to_string(),
        }
    }
}

/// A label, and the number that it had where its file names its classes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meaning {
    /// The label; by name where the file has names.
    pub label: Label,
    /// The number in the file's own list.
    pub number: Option<Label>,
}

/// What the labels of a data set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labels {
    /// Classes by their names, in the order of their numbers.
    Classes(Classes),
    /// Numbers: a score is learned (regression).
    Scores,
}

/// Names of classes, with the number of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Labels {
    /// Classes of these names, in the order of their numbers.
    ///
    /// # Errors
    /// There are fewer than two, more than are allowed, or one of them twice.
    pub fn classes(names: Vec<String>) -> Result<Self, String> {
        if names.len() > MAX_CLASSES {
            return Err(format!("there are more than {MAX_CLASSES} labels; is it a column of texts?"));
        }
        if names.len() < 2 {
            return Err(format!(
                "a classifier needs at least two labels, and there is only {}",
                shown(&names)
            ));
        }
        let mut numbers = HashMap::with_capacity(names.len());
        for (number, name) in (0..).zip(&names) {
            if numbers.insert(name.clone(), number).is_some() {
                return Err(format!("the label `{name}` is named twice"));
            }
        }
        Ok(Self::Classes(Classes { names, numbers }))
    }

    /// What the labels of a training set are: scores where one of them has a fraction and all are numbers; else
    /// classes, sorted: integers by value, names as texts.
    ///
    /// # Errors
    /// As [`Labels::classes`].
    pub fn of_training<'a>(labels: impl IntoIterator<Item = &'a Label>) -> Result<Self, String> {
        let (mut names, mut ints, mut fractions) = (BTreeSet::new(), BTreeSet::new(), false);
        let mut texts = false;
        for label in labels {
            texts |= matches!(label, Label::Text(_));
            fractions |= matches!(label, Label::Float(_));
            if let (Label::Int(int), true) = (label, ints.len() <= MAX_CLASSES) {
                ints.insert(*int);
            }
            // One more than is allowed is enough to see that there are too many.
            if names.len() <= MAX_CLASSES {
                names.insert(label.to_string());
            }
        }
        match (texts, fractions) {
            (true, _) => Self::classes(names.into_iter().collect()),
            (false, true) => Ok(Self::Scores),
            (false, false) => Self::classes(ints.iter().map(i64::to_string).collect()),
        }
    }

    /// What the head has to put out: as many numbers as classes, or one.
    pub fn outputs(&self) -> usize {
        self.names().len().max(1)
    }

    /// Names of the classes in the order of their numbers; none for scores.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Classes(classes) => &classes.names,
            Self::Scores => &[],
        }
    }

    /// What is to be predicted of a row with this label: by its name, else by its number.
    ///
    /// # Errors
    /// It is none of the classes, or no number.
    pub(super) fn target(&self, meaning: &Meaning) -> Result<Target, String> {
        let by_name = self.of(&meaning.label);
        match (&meaning.number, &by_name) {
            (Some(number), Err(_)) => self.of(number).or(by_name),
            _ => by_name,
        }
    }

    /// What is to be predicted of a row with this label. An integer that is no name is the class of that number.
    ///
    /// # Errors
    /// It is none of the classes, or no number.
    pub fn of(&self, label: &Label) -> Result<Target, String> {
        match (self, label) {
            (Self::Classes(classes), label) => match (classes.numbers.get(&label.to_string()), label) {
                (Some(number), _) => Ok(Target::Class(*number)),
                (None, Label::Int(int))
                    if usize::try_from(*int).is_ok_and(|int| int < classes.names.len()) =>
                {
                    Ok(Target::Class(*int as u32))
                }
                (None, _) => {
                    Err(format!("has the label `{label}`, which is none of {}", shown(&classes.names)))
                }
            },
            (Self::Scores, Label::Int(int)) => Ok(Target::Score(*int as f32)),
            (Self::Scores, Label::Float(float)) => Ok(Target::Score(*float as f32)),
            (Self::Scores, Label::Text(text)) => {
                Err(format!("has the label `{text}`, but others are numbers"))
            }
        }
    }
}

fn shown(names: &[String]) -> String {
    let some: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    if some.is_empty() { "none".to_owned() } else { some.join(", ") + &more }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[serde_json::Value], typed: bool) -> Vec<Label> {
        values.iter().map(|value| Label::read(value.clone(), typed).unwrap()).collect()
    }

    fn of(values: &[serde_json::Value], typed: bool) -> Labels {
        Labels::of_training(&labels(values, typed)).unwrap()
    }

    #[test]
    fn classes_are_sorted_and_scores_have_fractions() {
        assert_eq!(of(&["b".into(), "a".into(), "b".into()], true).names(), ["a", "b"]);
        assert_eq!(of(&[10.into(), 9.into(), 0.into()], true).names(), ["0", "9", "10"]);
        assert_eq!(of(&[true.into(), false.into()], true).names(), ["false", "true"]);
        assert_eq!(of(&[1.5.into(), 2.into()], true), Labels::Scores);
        assert_eq!(of(&["1.5".into(), "2".into()], false), Labels::Scores);
        assert_eq!(of(&["10".into(), "2".into()], false).names(), ["2", "10"]);
        assert_eq!(of(&["10".into(), "2".into()], true).names(), ["10", "2"]);
        assert_eq!(of(&["1".into(), "inf".into(), "007".into()], false).names(), ["007", "1", "inf"]);
        assert_eq!(of(&[1.5.into(), "x".into(), 2.into()], true).names(), ["1.5", "2", "x"]);
    }

    #[test]
    fn a_number_counts_where_it_is_no_name() {
        let named = Labels::classes(vec!["entailment".into(), "neutral".into()]).unwrap();
        assert_eq!(named.of(&Label::Int(1)), Ok(Target::Class(1)));
        assert_eq!(named.of(&Label::Text("neutral".into())), Ok(Target::Class(1)));
        assert!(
            named.of(&Label::Int(-1)).unwrap_err().contains("`-1`, which is none of `entailment`, `neutral`")
        );
        assert!(named.of(&Label::Text("other".into())).is_err());
        let swapped = Labels::classes(vec!["1".into(), "0".into()]).unwrap();
        assert_eq!(swapped.of(&Label::Int(1)), Ok(Target::Class(0)), "a name comes before a number");
        assert_eq!(Labels::Scores.of(&Label::Int(3)), Ok(Target::Score(3.0)));
        assert!(Labels::Scores.of(&Label::Text("x".into())).is_err());
        assert_eq!((named.outputs(), Labels::Scores.outputs()), (2, 1));
    }

    #[test]
    fn labels_that_are_none() {
        for (value, wanted) in [
            (serde_json::json!([1]), "a list"),
            (serde_json::json!({}), "an object"),
            (serde_json::json!(null), "null"),
            (serde_json::json!(" "), "empty"),
        ] {
            assert!(Label::read(value, true).unwrap_err().contains(wanted));
        }
        assert!(
            Labels::classes(vec!["a".into()])
                .unwrap_err()
                .contains("at least two labels, and there is only `a`")
        );
        assert!(Labels::classes(vec!["a".into(), "a".into()]).unwrap_err().contains("twice"));
    }
}
