//! What workers say about themselves, and what jobs ask of them: names with values.

use std::{collections::BTreeMap, fmt, sync::Arc};

use lorafleet_proto::v1 as pb;

/// The label that every worker has: what it computes on.
pub const DEVICE: &str = "device";
/// Words that say who made a device, not which one it is.
const MAKERS: &[&str] = &["nvidia", "tesla", "geforce"];

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

/// The labels of a worker that registers: its own, and its device.
pub fn labels_of(request: &pb::RegisterWorkerRequest) -> BTreeMap<String, String> {
    let mut labels = request.labels.clone();
    let device = request.resources.as_ref().map_or("", |resources| resources.device.as_str());
    labels.insert(DEVICE.to_owned(), device_label(device));
    labels
}

/// What people call a device: `cpu`, or a GPU's model up to its number, without its maker: `h200`, `rtx-4090`.
fn device_label(device: &str) -> String {
    let lower = device.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    let mut label: Vec<&str> = Vec::new();
    for word in words.filter(|word| !MAKERS.contains(word)) {
        label.push(word);
        if word.contains(|c: char| c.is_ascii_digit()) {
            break;
        }
    }
    if label.is_empty() { "cpu".to_owned() } else { label.join("-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_by_its_model() {
        let names = [
            ("cpu", "cpu"),
            ("", "cpu"),
            ("NVIDIA H200", "h200"),
            ("NVIDIA A100-SXM4-80GB", "a100"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("Tesla T4", "t4"),
            ("NVIDIA RTX A6000", "rtx-a6000"),
        ];
        for (device, label) in names {
            assert_eq!(device_label(device), label, "{device}");
        }
    }

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
