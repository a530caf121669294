//! What a job may say, but nothing here can do yet: refused by name, never passed over in silence.

use lorafleet_proto::v1 as pb;

use super::Check;

impl Check {
    pub(super) fn not_yet(&mut self, spec: &pb::JobSpec) {
        let adapter = spec.adapter.clone().unwrap_or_default();
        let train = spec.train.unwrap_or_default();
        let eval = spec.eval.clone().unwrap_or_default();
        let checkpoint = spec.checkpoint.unwrap_or_default();
        for (given, path) in [
            (spec.task == pb::Task::Classification as i32, "task"),
            (adapter.method > pb::AdapterMethod::Dora as i32, "adapter.method"),
            (adapter.start.is_some(), "adapter.start"),
            (train.recompute, "train.recompute"),
            (eval.patience > 0, "eval.patience"),
            (checkpoint.best, "checkpoint.best"),
        ] {
            self.rule(!given, path, || "cannot be trained yet with this value; leave it out".to_owned());
        }
    }
}
