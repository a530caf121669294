//! Names of things: job and worker ids, fences, and the resource names that the API shows for them.

use std::{fmt, str::FromStr};

use lorafleet_proto::v1 as pb;
use uuid::Uuid;

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub Uuid);

/// Who jobs belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub Uuid);

/// A sweep: many jobs of one submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SweepId(pub Uuid);

/// A worker process; a restarted worker has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub Uuid);

/// A worker's seat in an attempt: from 1, growing within the attempt, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceNo(pub u32);

/// A place of one attempt of one job: what a worker runs as long as it holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The place.
    pub place: PlaceNo,
}

/// A resource name or id that has not the form it should have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {what}; its form is `{form}`")]
pub struct NameError {
    given: String,
    what: &'static str,
    form: &'static str,
}

/// What tells stale writers from live ones; compared for equality.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The attempt, from 1.
    pub attempt: u32,
    /// The generation within the attempt, from 1; 0 while its members load.
    pub generation: u32,
    /// The generation's random id: 16 lower-case hex digits; empty while its members load.
    pub generation_id: String,
}

// === impl JobId ===

impl JobId {
    /// A new id; ids of later jobs sort later.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Reads `jobs/{id}`.
    pub fn from_name(name: &str) -> Result<Self, NameError> {
        let id = name.strip_prefix("jobs/").and_then(|id| Uuid::from_str(id).ok());
        id.map(Self).ok_or_else(|| NameError { given: name.into(), what: "job name", form: "jobs/{id}" })
    }

    /// `jobs/{id}`.
    pub fn name(self) -> String {
        format!("jobs/{self}")
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

// === impl TenantId ===

impl TenantId {
    /// The tenant that is always there: of everyone who shows no token.
    pub const DEFAULT: Self = Self(Uuid::from_u128(1));

    /// A new id; ids of later tenants sort later.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for TenantId {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

// === impl SweepId ===

impl SweepId {
    /// A new id; ids of later sweeps sort later.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Reads `sweeps/{id}`.
    pub fn from_name(name: &str) -> Result<Self, NameError> {
        let id = name.strip_prefix("sweeps/").and_then(|id| Uuid::from_str(id).ok());
        id.map(Self).ok_or_else(|| NameError { given: name.into(), what: "sweep name", form: "sweeps/{id}" })
    }

    /// `sweeps/{id}`.
    pub fn name(self) -> String {
        format!("sweeps/{self}")
    }
}

impl Default for SweepId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SweepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

// === impl WorkerId ===

impl WorkerId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for WorkerId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let id = Uuid::from_str(text).map(Self);
        id.map_err(|_| NameError { given: text.into(), what: "worker id", form: "a UUID" })
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

// === impl RunId ===

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.job, self.attempt, self.place)
    }
}

// === impl PlaceNo ===

impl PlaceNo {
    /// As the database keeps it.
    pub(crate) fn to_i32(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for PlaceNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Fence ===

impl Fence {
    /// An attempt before its first generation.
    pub fn loading(attempt: u32) -> Self {
        Self { attempt, generation: 0, generation_id: String::new() }
    }

    /// The generation after this one and after generation `above`, with a new random id.
    pub fn next(&self, above: u32) -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let generation = self.generation.max(above).saturating_add(1);
        Self { attempt: self.attempt, generation, generation_id: format!("{:016x}", high ^ low) }
    }

    /// The attempt as the database keeps it.
    pub(crate) fn attempt_i32(&self) -> i32 {
        i32::try_from(self.attempt).unwrap_or(i32::MAX)
    }

    /// The generation as the database keeps it.
    pub(crate) fn generation_i32(&self) -> i32 {
        i32::try_from(self.generation).unwrap_or(i32::MAX)
    }
}

impl From<pb::Fence> for Fence {
    fn from(fence: pb::Fence) -> Self {
        Self { attempt: fence.attempt, generation: fence.generation, generation_id: fence.generation_id }
    }
}

impl From<&Fence> for pb::Fence {
    fn from(fence: &Fence) -> Self {
        Self {
            attempt: fence.attempt,
            generation: fence.generation,
            generation_id: fence.generation_id.clone(),
        }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.attempt, self.generation, self.generation_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_other_forms_are_refused() {
        let job = JobId::new();
        assert_eq!(JobId::from_name(&job.name()), Ok(job));
        assert!(JobId::from_name("jobs/7").is_err());
    }

    #[test]
    fn generation_ids_are_sixteen_hex_digits_and_differ() {
        let (a, b) = (Fence::loading(1).next(0), Fence::loading(1).next(0));
        assert_ne!(a, b);
        assert_eq!((a.generation, a.next(0).generation, a.next(7).generation), (1, 2, 8));
        assert!(a.generation_id.len() == 16 && a.generation_id.chars().all(|c| c.is_ascii_hexdigit()));
    }
}
