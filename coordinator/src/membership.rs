//! Who goes on in a gang: a pure rule over what each place's holder said, with time passed in.
//!
//! A generation ends when each of its members has parted, has ended, or counts as dead. Those that parted go on, with
//! the newcomers that have loaded; `workers.min` binds the start of an attempt, never its survivors.

use std::time::Duration;

use crate::{
    ids::PlaceNo,
    job::{MemberOutcome, Phase},
};

/// How long after the first parting a member that a peer saw go, or could not reach, may still part, when nothing is
/// known of its stream; with its stream closed it has no time at all.
pub const GONE_GRACE: Duration = Duration::from_millis(50);
/// The same for a member that a peer calls silent or stuck, and for one that is called gone while its stream is open.
pub const SILENT_GRACE: Duration = Duration::from_millis(1500);
/// The same where more than half of the members have parted: they are not cut off by a few.
pub const MAJORITY_GRACE: Duration = Duration::from_millis(300);
/// The same for a member that nobody complains about.
pub const QUIET_GRACE: Duration = Duration::from_secs(5);

/// An attempt as the rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Members that the job needs to start.
    pub min: usize,
    /// How far the attempt has come.
    pub phase: Phase,
    /// Every place of the attempt that is live or in the current generation, by number.
    pub seats: Vec<Seat>,
    /// Time since the first parting from the current generation; zero without one.
    pub waited: Duration,
    /// A step was finished in the current generation.
    pub progressed: bool,
    /// The time for loading is over.
    pub overdue: bool,
}

/// A place and its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The place's number.
    pub place: PlaceNo,
    /// Its index in the current generation; none for a newcomer, and for everyone before the first generation.
    pub index: Option<u32>,
    /// What its holder does.
    pub standing: Standing,
    /// What is known of its holder's stream.
    pub stream: Stream,
    /// The last step that it said it finished; without one nothing is lost with it.
    pub step: u64,
}

/// What a place's holder does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It loads base and data.
    Loading,
    /// It has loaded; as a member of a generation it trains.
    Ready,
    /// It has left the current generation's collective, and waits for the next.
    Parted(Vec<Suspicion>),
    /// Its part is over.
    Ended(MemberOutcome),
}

/// What is known of a worker's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// It is open, here.
    Open,
    /// It is not here: another coordinator may have it.
    Unknown,
    /// It was here, and closed.
    Closed,
}

/// Direct evidence against a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Whom it is about, by index in the current generation.
    pub index: u32,
    /// What was seen.
    pub evidence: Evidence,
}

/// What a member saw of a peer. Those that leave the least doubt come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// Its connection closed without a good-bye.
    Gone,
    /// It could not be reached when the generation was joined.
    Unreachable,
    /// No ping came for longer than the deadline.
    Silent,
    /// It pings, but took no part in an operation before its deadline.
    Stuck,
}

/// What to do about an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing for now.
    Wait {
        /// Look again after this time, whatever happens until then.
        again: Option<Duration>,
        /// Meanwhile ask the members that have not parted to do so politely.
        regroup: bool,
    },
    /// Open the next generation.
    Open {
        /// Its members by index: those of the generation before in their order, then newcomers.
        members: Vec<PlaceNo>,
        /// Places that end.
        removed: Vec<Removal>,
    },
    /// Fewer are left than the job needs to start: tell them to stop.
    Close,
    /// Nobody is left.
    Dissolve {
        /// They gave it back politely; otherwise it is lost.
        released: bool,
    },
}

/// A place that ends because the gang goes on without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The place.
    pub place: PlaceNo,
    /// Why.
    pub why: Why,
}

/// Why a gang goes on without a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A peer has evidence against it, and it did not part in time.
    Dead {
        /// The evidence that leaves the least doubt.
        evidence: Evidence,
        /// Indices of those that have evidence.
        by: Vec<u32>,
    },
    /// It did not part in time, and nobody knows why.
    Quiet,
    /// It lives, but it and these indices cannot reach each other.
    Cut {
        /// The others.
        from: Vec<u32>,
    },
    /// It did not load in time.
    Late,
}

/// Decides what to do about an attempt.
pub fn decide(view: &View) -> Decision {
    match view.phase {
        Phase::Loading => loading(view),
        Phase::Training => training(view),
        Phase::Closing if view.seats.iter().all(Seat::has_ended) => dissolve(view.seats.iter()),
        Phase::Closing | Phase::Ended => Decision::Wait { again: None, regroup: false },
    }
}

fn loading(view: &View) -> Decision {
    let live: Vec<&Seat> = view.seats.iter().filter(|seat| !seat.has_ended()).collect();
    if live.is_empty() {
        return dissolve(view.seats.iter());
    }
    let ready = |seat: &&&Seat| seat.standing != Standing::Loading;
    let members: Vec<PlaceNo> = live.iter().filter(ready).map(|seat| seat.place).collect();
    let enough = members.len() >= view.min;
    if live.len() < view.min || (view.overdue && !enough) {
        Decision::Close
    } else if members.len() == live.len() || view.overdue {
        let late = live.iter().filter(|seat| seat.standing == Standing::Loading);
        let removed = late.map(|seat| Removal { place: seat.place, why: Why::Late }).collect();
        Decision::Open { members, removed }
    } else {
        Decision::Wait { again: None, regroup: false }
    }
}

fn training(view: &View) -> Decision {
    let members = by_index(&view.seats);
    if members.iter().all(|(_, seat)| seat.has_ended()) {
        return dissolve(members.iter().map(|(_, seat)| *seat));
    }
    let newcomers = view.seats.iter().filter(|seat| seat.index.is_none() && seat.standing == Standing::Ready);
    let newcomers: Vec<PlaceNo> = newcomers.map(|seat| seat.place).collect();
    let (mut rest, mut removed, mut again) = (Vec::new(), Vec::new(), None::<Duration>);
    let said = members.iter().filter(|(_, seat)| matches!(seat.standing, Standing::Parted(_))).count();
    let there = members.iter().filter(|(_, seat)| !seat.has_ended()).count();
    let (parted, majority) = (said > 0, said * 2 > there);
    for (index, seat) in &members {
        match &seat.standing {
            Standing::Ended(_) => {}
            Standing::Parted(suspicions) => {
                rest.push(Parted { index: *index, place: seat.place, step: seat.step, suspicions })
            }
            Standing::Loading | Standing::Ready => {
                let (grace, why) = grace(*index, seat.stream, &members, majority);
                if parted && view.waited >= grace {
                    removed.push(Removal { place: seat.place, why });
                } else {
                    let left = grace.saturating_sub(view.waited);
                    again = Some(again.map_or(left, |soonest| soonest.min(left)));
                }
            }
        }
    }
    if let Some(again) = again {
        let changed = !newcomers.is_empty() || members.iter().any(|(_, seat)| seat.has_ended());
        return Decision::Wait { again: parted.then_some(again), regroup: changed };
    }
    removed.extend(cut_bad_links(&mut rest, view.progressed));
    let members = rest.iter().map(|member| member.place).chain(newcomers).collect();
    Decision::Open { members, removed }
}

/// The members of the current generation.
fn by_index(seats: &[Seat]) -> Vec<(u32, &Seat)> {
    let mut members: Vec<(u32, &Seat)> = seats.iter().filter_map(|seat| Some((seat.index?, seat))).collect();
    members.sort_by_key(|(index, _)| *index);
    members
}

/// How long after the first parting this member may still part, and why it would go then.
fn grace(index: u32, stream: Stream, members: &[(u32, &Seat)], majority: bool) -> (Duration, Why) {
    let (mut strongest, mut by) = (None::<Evidence>, Vec::new());
    for (other, seat) in members {
        let Standing::Parted(suspicions) = &seat.standing else { continue };
        let evidence = suspicions.iter().filter(|s| s.index == index).map(|s| s.evidence).min();
        let Some(evidence) = evidence else { continue };
        by.push(*other);
        strongest = Some(strongest.map_or(evidence, |before| before.min(evidence)));
    }
    let Some(evidence) = strongest else { return (QUIET_GRACE, Why::Quiet) };
    let grace = match (evidence, stream) {
        (Evidence::Gone | Evidence::Unreachable, Stream::Closed) => Duration::ZERO,
        (Evidence::Gone | Evidence::Unreachable, Stream::Unknown) => GONE_GRACE,
        _ if majority => MAJORITY_GRACE,
        // Its process may live, so one cut-off accuser must not outrun the many.
        (Evidence::Gone | Evidence::Unreachable, Stream::Open) | (Evidence::Silent | Evidence::Stuck, _) => {
            SILENT_GRACE
        }
    };
    (grace, Why::Dead { evidence, by })
}

/// A member that parted.
#[derive(Clone, Copy, Debug)]
struct Parted<'a> {
    index: u32,
    place: PlaceNo,
    step: u64,
    suspicions: &'a [Suspicion],
}

/// Takes members out until no two are left that cannot reach each other: one without a finished step goes before those
/// that have one, for they hold what would be lost; then the one with fewer good links, then the one that is rather
/// accused than accuses, then the higher index.
fn cut_bad_links(rest: &mut Vec<Parted<'_>>, progressed: bool) -> Vec<Removal> {
    let mut removed = Vec::new();
    loop {
        let mut worst: Option<(Standoff, usize)> = None;
        for (i, member) in rest.iter().enumerate() {
            let others = || rest.iter().filter(|other| other.index != member.index);
            let accuses = others().filter(|other| has_evidence(member, other, progressed)).count();
            let accused = others().filter(|other| has_evidence(other, member, progressed)).count();
            let good = others()
                .filter(|other| {
                    !has_evidence(member, other, progressed) && !has_evidence(other, member, progressed)
                })
                .count();
            let standoff = Standoff {
                has_steps: member.step > 0,
                good,
                accuses_less_accused: signed(accuses) - signed(accused),
                index: member.index,
            };
            let is_bad = good + 1 < rest.len();
            if is_bad && worst.as_ref().is_none_or(|(worst, _)| standoff.goes_before(worst)) {
                worst = Some((standoff, i));
            }
        }
        let Some((_, i)) = worst else { return removed };
        let gone = rest.remove(i);
        let cut = rest
            .iter()
            .filter(|other| has_evidence(&gone, other, progressed) || has_evidence(other, &gone, progressed));
        let from = cut.map(|other| other.index).collect();
        removed.push(Removal { place: gone.place, why: Why::Cut { from } });
    }
}

/// Whether one that parted holds evidence that it cannot reach another that parted. A connection that closed is none
/// where both live and the generation got somewhere: they may well reach each other again.
fn has_evidence(from: &Parted<'_>, about: &Parted<'_>, progressed: bool) -> bool {
    let counts = |evidence| evidence != Evidence::Gone || !progressed;
    from.suspicions.iter().any(|s| s.index == about.index && counts(s.evidence))
}

/// How a member stands among those that cannot all reach each other.
#[derive(Clone, Copy, Debug)]
struct Standoff {
    has_steps: bool,
    good: usize,
    accuses_less_accused: i64,
    index: u32,
}

impl Standoff {
    fn goes_before(&self, other: &Self) -> bool {
        let key = |s: &Self| (s.has_steps, s.good, s.accuses_less_accused, std::cmp::Reverse(s.index));
        key(self) < key(other)
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Nobody is left: released when places were given back, and the others only stopped because of that.
fn dissolve<'a>(seats: impl Iterator<Item = &'a Seat>) -> Decision {
    let outcomes: Vec<MemberOutcome> = seats.filter_map(Seat::outcome).collect();
    let polite =
        |outcome: &MemberOutcome| matches!(outcome, MemberOutcome::Released | MemberOutcome::Stopped);
    let released = outcomes.contains(&MemberOutcome::Released) && outcomes.iter().all(polite);
    Decision::Dissolve { released }
}

// === impl Seat ===

impl Seat {
    fn has_ended(&self) -> bool {
        matches!(self.standing, Standing::Ended(_))
    }

    fn outcome(&self) -> Option<MemberOutcome> {
        if let Standing::Ended(outcome) = &self.standing { Some(*outcome) } else { None }
    }
}

#[cfg(test)]
mod tests;
