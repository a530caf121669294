//! The kinds of faults.

use std::{fmt, str::FromStr};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SIGKILL to a worker; another takes its place.
    KillWorker,
    /// SIGSTOP to a worker for longer than its peers wait, then SIGCONT.
    StopWorker,
    /// SIGTERM to a worker.
    DrainWorker,
    /// A worker and the two that replace it are killed one after the other.
    KillRepeatedly,
    /// SIGKILL to all workers at once.
    KillAll,
    /// A further worker joins.
    AddWorker,
    /// A worker's memory is limited to less than it has.
    LimitMemory,
    /// A worker's clock goes an hour wrong.
    JumpClock,
    /// The disk below a worker is full.
    FillDisk,
    /// SIGKILL to a coordinator; it comes back.
    KillCoordinator,
    /// SIGSTOP to a coordinator, then SIGCONT.
    StopCoordinator,
    /// All coordinators are restarted, politely, one after the other.
    RollCoordinators,
    /// Nothing passes between a worker and everybody else.
    LinkDown,
    /// What a worker sends to one peer is lost; the other way works.
    CutToPeer,
    /// What a worker and one peer send to each other is lost.
    CutPeers,
    /// What a worker sends to the coordinator is lost.
    CutToCoordinator,
    /// A worker's link passes little.
    SlowLink,
    /// Connections to the coordinators are reset.
    ResetCoordinator,
    /// Nothing passes to and from the coordinators, and no connection closes.
    StallCoordinator,
    /// Postgres is stopped and started.
    RestartPostgres,
    /// All sessions of Postgres are ended.
    TerminateBackends,
    /// All connections of Postgres are taken.
    ExhaustConnections,
    /// An idle transaction holds the job's row.
    IdleTransaction,
    /// A transaction that reads everything, and stays open.
    LongReader,
    /// Postgres answers slowly.
    SlowPostgres,
    /// Nothing passes to and from Postgres, and no connection closes.
    StallPostgres,
    /// The store answers slowly.
    SlowStore,
    /// The store answers 500 and 503.
    FailingStore,
    /// Bodies read from the store break off.
    HalfRead,
    /// Bodies written to the store break off.
    HalfWrite,
    /// The store writes, and its answer is lost.
    LostSuccess,
    /// SIGKILL at a named point of the protocol.
    Failpoint(Point),
}

/// The protocol's named points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    MidReduction,
    BetweenReductionAndUpdate,
    MidBroadcast,
    CheckpointBeforeFiles,
    CheckpointBetweenFiles,
    CheckpointBeforeManifest,
    CheckpointBeforeRow,
    BetweenEvaluationAndRecord,
    PartedBeforeReport,
    BeginBeforeJoin,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 10] = [
        Point::MidReduction,
        Point::BetweenReductionAndUpdate,
        Point::MidBroadcast,
        Point::CheckpointBeforeFiles,
        Point::CheckpointBetweenFiles,
        Point::CheckpointBeforeManifest,
        Point::CheckpointBeforeRow,
        Point::BetweenEvaluationAndRecord,
        Point::PartedBeforeReport,
        Point::BeginBeforeJoin,
    ];

    /// As the programs call it.
    pub fn name(self) -> &'static str {
        match self {
            Point::MidReduction => "mid-reduction",
            Point::BetweenReductionAndUpdate => "between-reduction-and-update",
            Point::MidBroadcast => "mid-broadcast",
            Point::CheckpointBeforeFiles => "checkpoint-before-files",
            Point::CheckpointBetweenFiles => "checkpoint-between-files",
            Point::CheckpointBeforeManifest => "checkpoint-before-manifest",
            Point::CheckpointBeforeRow => "checkpoint-before-row",
            Point::BetweenEvaluationAndRecord => "between-evaluation-and-record",
            Point::PartedBeforeReport => "parted-before-report",
            Point::BeginBeforeJoin => "begin-before-join",
        }
    }

    /// Whether only the member that writes checkpoints comes there, and nobody knows in advance which that is.
    pub fn is_checkpoints(self) -> bool {
        matches!(
            self,
            Point::CheckpointBeforeFiles
                | Point::CheckpointBetweenFiles
                | Point::CheckpointBeforeManifest
                | Point::CheckpointBeforeRow
        )
    }

    /// Whether it is only reached after a gang has changed.
    pub fn needs_a_change(self) -> bool {
        matches!(self, Point::MidBroadcast | Point::PartedBeforeReport)
    }
}

impl Kind {
    /// Those that are no failpoint.
    const PLAIN: [Kind; 31] = [
        Kind::KillWorker,
        Kind::StopWorker,
        Kind::DrainWorker,
        Kind::KillRepeatedly,
        Kind::KillAll,
        Kind::AddWorker,
        Kind::LimitMemory,
        Kind::JumpClock,
        Kind::FillDisk,
        Kind::KillCoordinator,
        Kind::StopCoordinator,
        Kind::RollCoordinators,
        Kind::LinkDown,
        Kind::CutToPeer,
        Kind::CutPeers,
        Kind::CutToCoordinator,
        Kind::SlowLink,
        Kind::ResetCoordinator,
        Kind::StallCoordinator,
        Kind::RestartPostgres,
        Kind::TerminateBackends,
        Kind::ExhaustConnections,
        Kind::IdleTransaction,
        Kind::LongReader,
        Kind::SlowPostgres,
        Kind::StallPostgres,
        Kind::SlowStore,
        Kind::FailingStore,
        Kind::HalfRead,
        Kind::HalfWrite,
        Kind::LostSuccess,
    ];

    /// All of them.
    pub fn all() -> Vec<Kind> {
        Kind::PLAIN.into_iter().chain(Point::ALL.map(Kind::Failpoint)).collect()
    }

    /// Whether it needs namespaces: on one loopback nobody can be cut off.
    pub fn needs_namespaces(self) -> bool {
        matches!(
            self,
            Kind::LinkDown | Kind::CutToPeer | Kind::CutPeers | Kind::CutToCoordinator | Kind::SlowLink
        )
    }

    /// How many workers must be there for it.
    pub fn workers_needed(self) -> usize {
        match self {
            Kind::CutToPeer | Kind::CutPeers => 2,
            Kind::KillWorker
            | Kind::StopWorker
            | Kind::DrainWorker
            | Kind::KillRepeatedly
            | Kind::KillAll
            | Kind::LimitMemory
            | Kind::JumpClock
            | Kind::LinkDown
            | Kind::CutToCoordinator
            | Kind::SlowLink => 1,
            _ => 0,
        }
    }

    fn plain_name(self) -> &'static str {
        match self {
            Kind::KillWorker => "kill-worker",
            Kind::StopWorker => "stop-worker",
            Kind::DrainWorker => "drain-worker",
            Kind::KillRepeatedly => "kill-repeatedly",
            Kind::KillAll => "kill-all",
            Kind::AddWorker => "add-worker",
            Kind::LimitMemory => "limit-memory",
            Kind::JumpClock => "jump-clock",
            Kind::FillDisk => "fill-disk",
            Kind::KillCoordinator => "kill-coordinator",
            Kind::StopCoordinator => "stop-coordinator",
            Kind::RollCoordinators => "roll-coordinators",
            Kind::LinkDown => "link-down",
            Kind::CutToPeer => "cut-to-peer",
            Kind::CutPeers => "cut-peers",
            Kind::CutToCoordinator => "cut-to-coordinator",
            Kind::SlowLink => "slow-link",
            Kind::ResetCoordinator => "reset-coordinator",
            Kind::StallCoordinator => "stall-coordinator",
            Kind::RestartPostgres => "restart-postgres",
            Kind::TerminateBackends => "terminate-backends",
            Kind::ExhaustConnections => "exhaust-connections",
            Kind::IdleTransaction => "idle-transaction",
            Kind::LongReader => "long-reader",
            Kind::SlowPostgres => "slow-postgres",
            Kind::StallPostgres => "stall-postgres",
            Kind::SlowStore => "slow-store",
            Kind::FailingStore => "failing-store",
            Kind::HalfRead => "half-read",
            Kind::HalfWrite => "half-write",
            Kind::LostSuccess => "lost-success",
            Kind::Failpoint(point) => point.name(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if matches!(self, Kind::Failpoint(_)) { "at:" } else { "" };
        write!(f, "{prefix}{}", self.plain_name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let all = Kind::all();
        let names = || all.iter().map(Kind::to_string).collect::<Vec<_>>().join(", ");
        let found = all.iter().find(|kind| kind.to_string() == text);
        found.copied().ok_or_else(|| format!("{text:?} is none of {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in Kind::all() {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("power-cut".parse::<Kind>().unwrap_err().contains("kill-worker"));
    }
}
