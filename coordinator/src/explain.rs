//! Why a job does not run and what it waits for, what it does, or how it ended: one sentence.

use lorafleet_proto::v1 as pb;

use crate::{
    job::Phase,
    queue::{HeldBy, Standing},
};

/// Explains a job, given its place in the queue and what holds it back.
pub fn explain(job: &pb::Job, standing: &Standing, held: &HeldBy) -> pb::ExplainJobResponse {
    let queued = job.state() == pb::JobState::Queued;
    let waits = queued && !standing.held;
    pb::ExplainJobResponse {
        explanation: sentence(job, standing, held),
        state: job.state,
        position: standing.position.filter(|_| waits).unwrap_or(0),
        start_estimate_seconds: standing.start_estimate_seconds.filter(|_| waits),
        waits_for: held.after.iter().filter(|_| !standing.is_over).map(|job| job.name()).collect(),
    }
}

fn sentence(job: &pb::Job, standing: &Standing, held: &HeldBy) -> String {
    let said = job.state_message.as_str();
    match job.state() {
        pb::JobState::Queued if standing.held => {
            let why = held.to_string();
            if why.is_empty() {
                "is queued and about to be looked at".to_owned()
            } else {
                format!("is queued: it {why}")
            }
        }
        pb::JobState::Queued if said.is_empty() => "is queued and about to be looked at".to_owned(),
        pb::JobState::Queued => format!("is queued: it {said}"),
        pb::JobState::Running if standing.yielding => format!("is running, but {said}"),
        pb::JobState::Running => running(job, standing),
        pb::JobState::Paused => format!("is paused at step {}: {said}", job.step),
        pb::JobState::Succeeded => format!("has succeeded: {said}"),
        pb::JobState::Failed => format!("has failed: {said}"),
        pb::JobState::Cancelled => format!("was cancelled: {said}"),
        pb::JobState::Unspecified => "is in a state that this program does not know".to_owned(),
    }
}

fn running(job: &pb::Job, standing: &Standing) -> String {
    let workers = match job.world_size {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    };
    match standing.phase {
        Some(Phase::Loading) => {
            format!("is running: attempt {} loads base and data on {workers}", job.attempt)
        }
        Some(Phase::Closing) => {
            format!("is running, but attempt {} lost its gang: those left are told to stop", job.attempt)
        }
        _ if job.spec.as_ref().is_some_and(|spec| spec.action() == pb::Action::Evaluate) => {
            format!("is running: it evaluates an adapter on {workers}")
        }
        _ if job.spec.as_ref().is_some_and(|spec| spec.action() == pb::Action::Merge) => {
            format!("is running: it merges an adapter into the base on {workers}")
        }
        _ => {
            let left = job.latest.as_ref().filter(|point| point.seconds_left > 0.0);
            let left =
                left.map_or(String::new(), |point| format!(", about {:.0} s left", point.seconds_left));
            format!("is running on {workers}: step {} of {}{left}", job.step, job.total_steps)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;

    fn job(state: pb::JobState, message: &str) -> pb::Job {
        pb::Job { state: state.into(), state_message: message.into(), ..Default::default() }
    }

    #[test]
    fn a_queued_job_says_what_it_waits_for_and_where_it_stands() {
        let waits = job(pb::JobState::Queued, "waits for 2 workers to be free");
        let standing =
            Standing { position: Some(3), start_estimate_seconds: Some(90), ..Standing::default() };
        let told = explain(&waits, &standing, &HeldBy::default());
        assert_eq!(told.explanation, "is queued: it waits for 2 workers to be free");
        assert_eq!((told.position, told.start_estimate_seconds), (3, Some(90)));
        let other = JobId::new();
        let held = HeldBy { after: vec![other], until: None };
        let told = explain(&waits, &Standing { held: true, ..standing }, &held);
        assert_eq!(told.explanation, format!("is queued: it waits for {} to succeed", other.name()));
        assert_eq!((told.position, told.waits_for), (0, vec![other.name()]));
    }

    #[test]
    fn a_running_or_ended_job_says_what_it_does_or_how_it_ended() {
        let tell =
            |job: &pb::Job, standing: &Standing| explain(job, standing, &HeldBy::default()).explanation;
        let running =
            pb::Job { world_size: 2, step: 5, total_steps: 9, attempt: 1, ..job(pb::JobState::Running, "") };
        let training = Standing { phase: Some(Phase::Training), ..Standing::default() };
        assert_eq!(tell(&running, &training), "is running on 2 workers: step 5 of 9");
        let loading = Standing { phase: Some(Phase::Loading), ..Standing::default() };
        assert!(tell(&running, &loading).contains("loads base and data"));
        let failed = job(pb::JobState::Failed, "line 7 is no JSON");
        assert_eq!(tell(&failed, &Standing::default()), "has failed: line 7 is no JSON");
    }
}
