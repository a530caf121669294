//! What a job's history says about its gang: who is in, who is not, and why.

use lorafleet_proto::v1 as pb;

use super::{count, text_list};
use crate::{
    ids::Fence,
    job::MemberOutcome,
    membership::{Evidence, Removal, Why},
    queue::{Live, Place},
};

/// A gang begins.
pub(super) fn ready(ready: &pb::Ready, members: usize, start_step: u64) -> String {
    let examples = ready.data.as_ref().map_or(0, |data| data.examples);
    if ready.total_steps == 0 {
        // It trains nothing.
        return match examples {
            0 => format!("{} ready", count(members, "member")),
            examples => format!("{} ready; {examples} examples", count(members, "member")),
        };
    }
    let from = match start_step {
        0 => "from scratch".to_owned(),
        step => format!("after step {step}"),
    };
    format!(
        "{} ready; {} examples, {} steps, {} trainable parameters; training {from}",
        count(members, "member"),
        examples,
        ready.total_steps,
        ready.trainable_parameters
    )
}

/// "generation 3: a, c (b is gone: its connection closed, as a saw; d joined)".
pub(super) fn generation(fence: &Fence, places: &[Place], members: &[&Place], removed: &[Removal]) -> String {
    let mut reasons = Vec::new();
    for place in places.iter().filter(|place| place.index.is_some()) {
        let why = removed.iter().find(|removal| removal.place == place.place).map(|removal| &removal.why);
        match (why, place.outcome) {
            (Some(why), _) => reasons.push(format!("{} {}", place.name, removal(places, why))),
            (None, Some(MemberOutcome::Released)) => reasons.push(format!("{} left", place.name)),
            (None, Some(_)) => reasons.push(format!("{}: {}", place.name, place.message)),
            (None, None) => {}
        }
    }
    let joined = members.iter().filter(|place| place.index.is_none());
    reasons.extend(joined.map(|place| format!("{} joined", place.name)));
    if reasons.is_empty() {
        let said = places.iter().find_map(|place| {
            let message = &place.parted.as_ref()?.message;
            (!message.is_empty()).then(|| format!("{}: {message}", place.name))
        });
        reasons.push(said.unwrap_or_else(|| "the same members".to_owned()));
    }
    let names = text_list(members.iter().map(|place| place.name.as_str()));
    format!("generation {}: {names} ({})", fence.generation, reasons.join("; "))
}

/// Why a gang goes on without a member, to be said after its name.
pub(super) fn removal(places: &[Place], why: &Why) -> String {
    match why {
        Why::Dead { evidence, by } => {
            let what = match evidence {
                Evidence::Gone => "is gone: its connection closed",
                Evidence::Unreachable => "is gone: it could not be reached",
                Evidence::Silent => "fell silent",
                Evidence::Stuck => "took no part in a step in time",
            };
            format!("{what}, as {} saw", names(places, by))
        }
        Why::Quiet => "did not part from its generation in time".to_owned(),
        Why::Cut { from } => format!("and {} cannot reach each other", names(places, from)),
        Why::Late => "was not ready in time".to_owned(),
    }
}

/// A gang that loads has become too small.
pub(super) fn too_few(live: &Live, places: &[Place]) -> String {
    let ended = ended(places);
    let left = places.iter().filter(|place| place.outcome.is_none()).count();
    let what = format!("{} left, the job starts with {}", count(left, "worker"), live.min);
    if ended.is_empty() { what } else { format!("{ended} ({what})") }
}

/// How the parts of those that are no longer there ended: "worker a: fell silent; worker b: …".
pub(super) fn ended(places: &[Place]) -> String {
    let gone = places.iter().filter(|place| place.outcome.is_some() && !place.message.is_empty());
    let list: Vec<String> = gone.map(|place| format!("worker {}: {}", place.name, place.message)).collect();
    list.join("; ")
}

fn names(places: &[Place], indices: &[u32]) -> String {
    let of = |index: &u32| places.iter().find(|place| place.index == Some(*index));
    text_list(indices.iter().filter_map(of).map(|place| place.name.as_str()))
}
