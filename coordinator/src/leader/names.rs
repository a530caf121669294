//! Names and labels that many rows share, each kept once: a decision then compares addresses.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::scheduler::Labels;

/// With more than this, those that nobody uses are let go.
const MANY: usize = 10_000;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: HashSet<Arc<str>>,
    labels: HashMap<BTreeMap<String, String>, Arc<Labels>>,
}

impl Names {
    /// A name; nothing for an empty one.
    pub(super) fn text(&mut self, text: &str) -> Option<Arc<str>> {
        if text.is_empty() {
            return None;
        }
        if let Some(known) = self.texts.get(text) {
            return Some(known.clone());
        }
        if self.texts.len() >= MANY {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        Some(new)
    }

    /// A selector, or a worker's labels.
    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<Labels> {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        if self.labels.len() >= MANY {
            self.labels.retain(|_, labels| Arc::strong_count(labels) > 1);
        }
        let pairs = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let new: Arc<Labels> = Arc::new(pairs.collect());
        self.labels.insert(labels.clone(), new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_and_labels_are_one() {
        let mut names = Names::default();
        let (a, again) = (names.text("a").unwrap(), names.text("a").unwrap());
        assert!(Arc::ptr_eq(&a, &again) && names.text("").is_none());
        let zone: BTreeMap<String, String> = [("zone".to_owned(), "a".to_owned())].into();
        assert!(Arc::ptr_eq(&names.labels(&zone), &names.labels(&zone.clone())));
        assert!(names.labels(&BTreeMap::new()).is_empty());
    }
}
