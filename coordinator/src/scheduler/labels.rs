//! What workers say about themselves, and what jobs ask of them: names with values.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// Labels of a worker, or the selector of a job: the labels that its workers must have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(BTreeMap<Arc<str>, Arc<str>>);

impl Labels {
    /// No labels: a selector that every worker matches.
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these labels, of a worker, have all that `selector` asks for.
    pub fn match_all(&self, selector: &Self) -> bool {
        selector.0.iter().all(|(name, value)| self.0.get(name) == Some(value))
    }
}

impl<N: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        Self(labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// `device=h200, zone=a`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_asks_for_each_of_its_labels() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
        let worker = labels(&[("device", "h200"), ("zone", "a")]);
        assert!(worker.match_all(&Labels::default()));
        assert!(worker.match_all(&labels(&[("zone", "a")])));
        assert!(!worker.match_all(&labels(&[("zone", "b")])));
        assert!(!worker.match_all(&labels(&[("zone", "a"), ("disk", "fast")])));
        assert_eq!(worker.to_string(), "device=h200, zone=a");
    }
}
