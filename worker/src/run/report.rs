//! Where a run's reports go: the agent in service, a list in tests.

use lorafleet_proto::v1 as pb;

/// Takes what a run has to say; never blocks for long, and keeps it until the coordinator has it.
///
/// Everything goes out under the fence of the generation that the member is in: the one that it last [entered], or the
/// assignment's before the first.
///
/// What the gang has once (points, and events with a key) is reported by every member, in the same words and under the
/// same key, so that none of it is lost with a member: index 0 sends it at once, the others after a while, unless it is
/// acknowledged by then.
///
/// [entered]: Reporter::begun
pub trait Reporter: Send + Sync {
    /// Base and data are loaded.
    fn ready(&self, ready: pb::Ready);

    /// The member enters a generation, at this index. What is not acknowledged goes out under its fence from now on.
    fn begun(&self, fence: &pb::Fence, index: u32);

    /// The member has left the collective of a generation, and waits for the next. Told at once, from any thread.
    fn parted(&self, parted: pb::Parted);

    /// A step is finished. Every member reports it.
    fn point(&self, point: pb::MetricPoint);

    /// Something of the gang that is worth keeping in the job's history; every member reports it. The key is unique
    /// within the attempt: "evaluated/50".
    fn event(&self, key: &str, kind: &str, message: &str);

    /// Something of this member alone for the job's history; it gets a key of its own and is sent at once.
    fn own_event(&self, kind: &str, message: &str);

    /// A checkpoint is whole in the store. Reported by its writer.
    fn checkpoint(&self, checkpoint: pb::Checkpoint);

    /// Points and events of the gang that are not acknowledged yet.
    fn unacknowledged(&self) -> Backlog;

    /// Keeps what another member had not acknowledged, beside what is kept already; nothing twice.
    fn take_over(&self, backlog: Backlog);
}

/// What of a gang's reports is not acknowledged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backlog {
    /// By step.
    pub points: Vec<pb::MetricPoint>,
    /// The gang's events, in their order; their key tells them apart. Job and fence in them mean nothing.
    pub events: Vec<pb::ReportEvent>,
}
