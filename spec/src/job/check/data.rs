//! The rules that the fields of the data must keep.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;

use super::{Check, MAX_LIST};
use crate::job::{Action, DataSpec, LossOn, Source, file_path};

/// Names that `data.columns` may translate.
pub const COLUMNS: [&str; 9] =
    ["text", "text_pair", "label", "prompt", "completion", "messages", "instruction", "input", "output"];

impl Check {
    pub(super) fn data(
        &mut self,
        spec: &pb::DataSpec,
        max_length: u32,
        action: Option<Action>,
    ) -> Option<DataSpec> {
        let train = self.files("data.train", &spec.train);
        self.needed(spec, action);
        for (name, theirs) in &spec.columns {
            let path = format!("data.columns.{name}");
            self.rule(COLUMNS.contains(&name.as_str()), &path, || {
                format!("is not known; known are {}", COLUMNS.join(", "))
            });
            self.rule(!theirs.is_empty(), &path, || "is empty; give the data's name for it".to_owned());
        }
        self.range("data.labels", spec.labels.len(), 0, MAX_LIST);
        let mut seen = HashSet::new();
        for label in &spec.labels {
            self.rule(seen.insert(label), "data.labels", || format!("has {label:?} twice"));
        }
        self.rule(spec.overlap == 0 || spec.overlap < max_length, "data.overlap", || {
            format!("is {}; it must be below `train.max_length` ({max_length})", spec.overlap)
        });
        let loss_on = match pb::LossOn::try_from(spec.loss_on) {
            Ok(pb::LossOn::Completions) => Some(LossOn::Completions),
            Ok(pb::LossOn::All) => Some(LossOn::All),
            // Defaults are not filled into data that is absent.
            Ok(pb::LossOn::Unspecified) if spec.train.is_empty() && spec.eval.is_empty() => {
                Some(LossOn::Completions)
            }
            Ok(pb::LossOn::Unspecified) | Err(_) => None,
        };
        let loss_on = self.choice("data.loss_on", loss_on, spec.loss_on, "completions or all");
        Some(DataSpec {
            train,
            eval: self.files("data.eval", &spec.eval),
            columns: spec.columns.clone(),
            labels: spec.labels.clone(),
            overlap: spec.overlap,
            loss_on: loss_on?,
        })
    }

    /// What an action has to have, and what it has no use for.
    fn needed(&mut self, spec: &pb::DataSpec, action: Option<Action>) {
        let required = |files: &[pb::DataRef]| files.is_empty().then(|| "is required".to_owned());
        let useless = |files: &[pb::DataRef], what: &str| {
            (!files.is_empty()).then(|| format!("is not looked at by {what}; leave it out"))
        };
        let (train, eval) = match action {
            None => return,
            Some(Action::Train) => (required(&spec.train), None),
            Some(Action::Evaluate) => (useless(&spec.train, "an evaluation"), required(&spec.eval)),
            Some(Action::Merge) => (useless(&spec.train, "a merge"), useless(&spec.eval, "a merge")),
        };
        for (path, wrong) in [("data.train", train), ("data.eval", eval)] {
            self.rule(wrong.is_none(), path, || wrong.unwrap_or_default());
        }
    }

    fn files(&mut self, set: &str, files: &[pb::DataRef]) -> Vec<Source> {
        self.range(set, files.len(), 0, MAX_LIST);
        let of = files.len();
        let files = files.iter().enumerate();
        files
            .filter_map(|(i, file)| self.required(&file_path(set, i, of), Some((&file.source, &file.sha256))))
            .collect()
    }
}
