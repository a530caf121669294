//! Which histories a job may have: the state machine, replayed over its events.

use lorafleet_proto::v1 as pb;

/// Where the replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first event.
    Nothing,
    Queued,
    Running {
        attempt: u32,
        /// The last generation that was opened after the first.
        opened: u32,
    },
    Ended,
}

/// The first thing in the history that the state machine does not allow.
pub fn illegal(events: &[pb::JobEvent]) -> Option<String> {
    let mut state = State::Nothing;
    let mut attempts = 0;
    for (place, event) in events.iter().enumerate() {
        if event.number != place as u64 + 1 {
            return Some(format!("event {} stands where {} should", event.number, place + 1));
        }
        state = match next(state, event, &mut attempts) {
            Ok(state) => state,
            Err(why) => {
                return Some(format!("event {} ({}: {}): {why}", event.number, event.kind, event.message));
            }
        };
    }
    match state {
        State::Ended => None,
        other => Some(format!("the history ends while the job is {other:?}")),
    }
}

fn next(state: State, event: &pb::JobEvent, attempts: &mut u32) -> Result<State, String> {
    let kind = event.kind.as_str();
    match (state, kind) {
        (State::Nothing, "created") => return Ok(State::Queued),
        (State::Nothing, _) => return Err("nothing comes before \"created\"".into()),
        (State::Ended, _) => return Err("nothing comes after the job's end".into()),
        (_, "created") => return Err("a job is created once".into()),
        _ => {}
    }
    match kind {
        "started" => {
            if state != State::Queued {
                return Err(format!("an attempt starts while the job is {state:?}"));
            }
            *attempts += 1;
            if event.attempt != *attempts {
                return Err(format!("attempt {} follows attempt {}", event.attempt, *attempts - 1));
            }
            Ok(State::Running { attempt: event.attempt, opened: 0 })
        }
        "cancelled" => Ok(State::Ended),
        "succeeded" | "failed" | "queued" => {
            fits(state, event)?;
            Ok(if kind == "queued" { State::Queued } else { State::Ended })
        }
        _ => match state {
            // What belongs to no attempt may come at any time.
            _ if event.attempt == 0 => Ok(state),
            State::Queued if event.attempt <= *attempts && is_late(kind) => Ok(state),
            _ => fits(state, event),
        },
    }
}

/// Kinds that a member of an attempt that has just ended may still have had stored.
fn is_late(kind: &str) -> bool {
    matches!(kind, "checkpoint" | "adopted")
}

/// The event belongs to the live attempt, and generations grow.
fn fits(state: State, event: &pb::JobEvent) -> Result<State, String> {
    let State::Running { attempt, opened } = state else {
        return Err(format!("it belongs to attempt {}, but the job is {state:?}", event.attempt));
    };
    if event.attempt != attempt {
        return Err(format!("it belongs to attempt {}, but attempt {attempt} is live", event.attempt));
    }
    if event.kind != "generation" {
        return Ok(state);
    }
    if event.generation <= opened {
        return Err(format!("generation {} opens after generation {opened}", event.generation));
    }
    Ok(State::Running { attempt, opened: event.generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: &[(&str, u32, u32)]) -> Vec<pb::JobEvent> {
        let event = |(place, (kind, attempt, generation)): (usize, &(&str, u32, u32))| pb::JobEvent {
            number: place as u64 + 1,
            kind: (*kind).into(),
            attempt: *attempt,
            generation: *generation,
            ..Default::default()
        };
        events.iter().enumerate().map(event).collect()
    }

    #[test]
    fn a_job_may_be_lost_started_again_and_succeed() {
        let events = history(&[
            ("created", 0, 0),
            ("started", 1, 1),
            ("ready", 1, 1),
            ("generation", 1, 2),
            ("checkpoint", 1, 2),
            ("lost", 1, 2),
            ("queued", 1, 2),
            ("started", 2, 1),
            ("resumed", 2, 1),
            ("succeeded", 2, 1),
        ]);
        assert_eq!(illegal(&events), None);
    }

    #[test]
    fn what_may_not_be_is_found() {
        type Case<'a> = (&'a [(&'a str, u32, u32)], &'a str);
        let cases: [Case<'_>; 8] = [
            (&[("started", 1, 1)], "nothing comes before"),
            (&[("created", 0, 0), ("created", 0, 0)], "created once"),
            (&[("created", 0, 0), ("started", 2, 1)], "attempt 2 follows attempt 0"),
            (&[("created", 0, 0), ("started", 1, 1), ("started", 2, 1)], "an attempt starts while"),
            (&[("created", 0, 0), ("succeeded", 1, 1)], "but the job is Queued"),
            (
                &[("created", 0, 0), ("started", 1, 1), ("succeeded", 1, 1), ("failed", 1, 1)],
                "nothing comes after",
            ),
            (
                &[("created", 0, 0), ("started", 1, 1), ("generation", 1, 3), ("generation", 1, 2)],
                "generation 2 opens after generation 3",
            ),
            (&[("created", 0, 0), ("started", 1, 1)], "the history ends while"),
        ];
        for (events, says) in cases {
            let found = illegal(&history(events)).unwrap_or_default();
            assert!(found.contains(says), "{events:?}: {found:?}");
        }
        let mut gap = history(&[("created", 0, 0), ("cancelled", 0, 0)]);
        gap[1].number = 3;
        assert_eq!(illegal(&gap), Some("event 3 stands where 2 should".into()));
    }
}
