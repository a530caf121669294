//! The rules of what a job does: an evaluation and a merge are about an adapter that is there, on one worker.

use lorafleet_proto::v1 as pb;

use super::Check;
use crate::job::Action;

impl Check {
    pub(super) fn action(&mut self, number: i32) -> Option<Action> {
        let action = match pb::Action::try_from(number) {
            Ok(pb::Action::Train) => Some(Action::Train),
            Ok(pb::Action::Evaluate) => Some(Action::Evaluate),
            Ok(pb::Action::Merge) => Some(Action::Merge),
            Ok(pb::Action::Unspecified) | Err(_) => None,
        };
        self.choice("action", action, number, "train, evaluate or merge")
    }

    /// What an evaluation and a merge need, and what they cannot do with.
    pub(super) fn of_action(&mut self, spec: &pb::JobSpec, action: Option<Action>) {
        let Some(action @ (Action::Evaluate | Action::Merge)) = action else { return };
        let name = action.name();
        let adapter = spec.adapter.clone().unwrap_or_default();
        if adapter.method == pb::AdapterMethod::Full as i32 {
            self.rule(false, "adapter.method", || {
                format!("is full, which has no adapter; `action: {name}` is about one")
            });
        } else {
            self.rule(adapter.start.is_some(), "adapter", || {
                format!(
                    "is required for `action: {name}`: jobs/NAME for what another job of the file trains, jobs/ID for \
                     what one has trained, or an adapter's folder"
                )
            });
        }
        let workers = spec.workers.unwrap_or_default();
        self.rule(workers.max <= 1, "workers.max", || {
            format!("is {}; `action: {name}` takes one worker", workers.max)
        });
        let prompts = spec.eval.as_ref().map_or(0, |eval| eval.prompts.len());
        self.rule(prompts == 0, "eval.prompts", || {
            "are answered by jobs that train; leave them out".to_owned()
        });
    }
}
