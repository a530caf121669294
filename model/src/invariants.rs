//! What must hold in every state that can be reached.

use stateright::{Model as _, Property};

use crate::{
    Gangs,
    world::{Flaw, Job, Stage, State, World},
};

/// Every sum holds each micro-batch once.
pub const ONCE: &str = "each step's sum holds each micro-batch exactly once";
/// Same position, same bits.
pub const SAME: &str = "two members never hold different states of the same step";
/// Two whole states.
pub const WHOLE: &str = "a member that held a whole state holds one";
/// No rollback.
pub const AGAIN: &str = "no step is computed again while a member of the generation's gang holds it";
/// No resume beside the living.
pub const READ: &str = "no checkpoint is read while a member holds a state";
/// Fencing.
pub const FENCED: &str = "nobody changes the row under another fence than its own";
/// Rows and manifests.
pub const ROWS: &str = "a checkpoint's row names a whole manifest";
/// One end.
pub const ENDS_ONCE: &str = "a job ends once";
/// The right end.
pub const EXACT: &str = "a job ends with the undisturbed adapter";
/// Nothing hangs.
pub const NEVER_STUCK: &str = "when nothing can happen any more, the job has succeeded";

/// All of them.
pub const INVARIANTS: [&str; 10] =
    [ONCE, SAME, WHOLE, AGAIN, READ, FENCED, ROWS, ENDS_ONCE, EXACT, NEVER_STUCK];

pub(crate) fn properties() -> Vec<Property<Gangs>> {
    vec![
        Property::always(ONCE, |_, world: &World| !world.flaws.contains(&Flaw::WrongSum)),
        Property::always(SAME, |_, world: &World| agree(world)),
        Property::always(WHOLE, |_, world: &World| {
            world.workers.iter().filter_map(|worker| worker.member).all(|m| m.whole.is_some() || !m.had_whole)
        }),
        Property::always(AGAIN, |_, world: &World| !world.flaws.contains(&Flaw::Again)),
        Property::always(READ, |_, world: &World| !world.flaws.contains(&Flaw::CheckpointRead)),
        Property::always(FENCED, |_, world: &World| !world.flaws.contains(&Flaw::StaleWrite)),
        Property::always(ROWS, |_, world: &World| world.row.checkpoints.is_subset(&world.store)),
        Property::always(ENDS_ONCE, |_, world: &World| !world.flaws.contains(&Flaw::EndedTwice)),
        Property::always(EXACT, |gangs: &Gangs, world: &World| match world.row.job {
            Job::Succeeded(state) => state == State { step: gangs.steps, digest: 0 },
            _ => true,
        }),
        Property::always(NEVER_STUCK, |gangs: &Gangs, world: &World| {
            if world.workers.iter().any(|worker| worker.silent) {
                return true; // It may be heard again.
            }
            let mut actions = Vec::new();
            gangs.actions(world, &mut actions);
            matches!(world.row.job, Job::Succeeded(_)) || !actions.is_empty()
        }),
    ]
}

/// Members of one attempt agree, of whatever generation they are.
fn agree(world: &World) -> bool {
    let members = || world.workers.iter().filter_map(|worker| worker.member);
    let states = |stage: Stage| matches!(stage, Stage::Training(_) | Stage::Parted | Stage::Closing);
    members().filter(|m| states(m.stage)).all(|a| {
        let same = |b: crate::Member| match (a.whole, b.whole) {
            (Some(one), Some(other)) => one.step != other.step || one.digest == other.digest,
            _ => true,
        };
        members().filter(|m| states(m.stage)).all(same)
    })
}
