//! What members must agree about before they train together, and how a disagreement is said.

use lorafleet_proto::v1 as pb;

use crate::queue::Place;

type Part = (&'static str, fn(&pb::Ready) -> String);

/// What is compared, with its name.
const PARTS: [Part; 5] = [
    ("the base", |ready| ready.base_sha256.clone()),
    ("the training data", |ready| ready.train_sha256.clone()),
    ("the evaluation data", |ready| ready.eval_sha256.clone()),
    ("the number of steps", |ready| ready.total_steps.to_string()),
    ("the trainable parameters", |ready| ready.trainable_parameters.to_string()),
];

/// What the members of a new gang disagree about, if they do, naming them.
pub(super) fn disagreement(members: &[&Place]) -> Option<String> {
    PARTS.iter().find_map(|(what, part)| {
        let loaded: Vec<(&str, String)> = members
            .iter()
            .filter_map(|member| Some((member.name.as_str(), part(member.ready.as_ref()?))))
            .collect();
        let (_, first) = loaded.first()?;
        if loaded.iter().all(|(_, other)| other == first) {
            return None;
        }
        let list: Vec<String> =
            loaded.iter().map(|(worker, value)| format!("{worker} has {value}")).collect();
        Some(format!("the gang's members disagree about {what}: {}", list.join("; ")))
    })
}

/// What a newcomer loaded that the gang it would join did not, if so, naming both values.
pub(super) fn differs(member: &Place, newcomer: &Place) -> Option<String> {
    let (gangs, its) = (member.ready.as_ref()?, newcomer.ready.as_ref()?);
    if gangs.base_sha256.is_empty() || its.base_sha256.is_empty() {
        // The database forgot what it had been told; the collective compares the states' digests all the same.
        return None;
    }
    PARTS.iter().find(|(_, part)| part(gangs) != part(its)).map(|(what, part)| {
        format!("{what} differs: {} has {}; the gang has {}", newcomer.name, part(its), part(gangs))
    })
}
