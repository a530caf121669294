//! Where a run's reports go: the agent in service, a list in tests.

use lorafleet_proto::v1 as pb;

/// Takes what a run has to say; never blocks for long, and keeps it until the coordinator has it.
pub trait Reporter: Send + Sync {
    /// Base and data are loaded.
    fn ready(&self, ready: pb::Ready);
    /// A step is finished.
    fn point(&self, point: pb::MetricPoint);
    /// Something worth keeping in the job's history.
    fn event(&self, kind: &str, message: &str);
    /// A checkpoint is whole in the store.
    fn checkpoint(&self, checkpoint: pb::Checkpoint);
}
