//! Planted defects, which the suite must find.

use std::{fmt, str::FromStr};

use super::kind::{Kind, Point};

/// What is wrong with the programs on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Writes of old generations and attempts are taken.
    FenceOff,
    /// A micro-batch is dealt twice after a change of generation.
    DealTwice,
    /// A broadcast is received into the state in use.
    BroadcastInPlace,
    /// The optimizer's count of steps is forgotten on resume.
    ForgetStepCount,
}

impl Defect {
    /// All of them.
    pub const ALL: [Defect; 4] =
        [Defect::FenceOff, Defect::DealTwice, Defect::BroadcastInPlace, Defect::ForgetStepCount];

    /// As the programs call it.
    pub fn name(self) -> &'static str {
        match self {
            Defect::FenceOff => "fence-off",
            Defect::DealTwice => "deal-twice",
            Defect::BroadcastInPlace => "broadcast-in-place",
            Defect::ForgetStepCount => "forget-step-count",
        }
    }

    /// The faults that bring it to light soonest; each run begins with one of them.
    pub fn faults(self) -> Vec<Kind> {
        match self {
            Defect::FenceOff => vec![Kind::StopWorker, Kind::CutToCoordinator, Kind::LinkDown],
            Defect::DealTwice => vec![Kind::KillWorker, Kind::AddWorker, Kind::DrainWorker],
            Defect::BroadcastInPlace => vec![Kind::Failpoint(Point::MidBroadcast)],
            Defect::ForgetStepCount => vec![Kind::KillAll],
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Defect {
    type Err = String;

    fn from_str(text: &str) -> Result<Defect, String> {
        let found = Defect::ALL.into_iter().find(|defect| defect.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", Defect::ALL.map(Defect::name).join(", ")))
    }
}
