//! One job, its events and states, in words.

use lorafleet::{pb, short_id};

use super::{
    Table, duration, number,
    text::{between, clock, date},
};

/// `jobs/… is paused: paused by its user`.
pub fn state_line(job: &pb::Job) -> String {
    format!("{} is {}", job.name, state_text(job))
}

/// A job's state, and why it is in it where that is known.
fn state_text(job: &pb::Job) -> String {
    match job.state_message.as_str() {
        "" => state_name(job.state()).to_owned(),
        why => format!("{}: {why}", state_name(job.state())),
    }
}

/// What people call a state.
pub fn state_name(state: pb::JobState) -> &'static str {
    match state {
        pb::JobState::Unspecified => "unknown",
        pb::JobState::Queued => "queued",
        pb::JobState::Running => "running",
        pb::JobState::Paused => "paused",
        pb::JobState::Succeeded => "succeeded",
        pb::JobState::Failed => "failed",
        pb::JobState::Cancelled => "cancelled",
    }
}

/// What people call a worker's state.
pub fn worker_state_name(state: pb::WorkerState) -> &'static str {
    match state {
        pb::WorkerState::Unspecified => "unknown",
        pb::WorkerState::Ready => "ready",
        pb::WorkerState::Draining => "draining",
        pb::WorkerState::Gone => "gone",
    }
}

fn attempt_state_name(state: pb::AttemptState) -> &'static str {
    match state {
        pb::AttemptState::Unspecified => "unknown",
        pb::AttemptState::Running => "running",
        pb::AttemptState::Succeeded => "succeeded",
        pb::AttemptState::Failed => "failed",
        pb::AttemptState::Lost => "lost",
        pb::AttemptState::Released => "released",
        pb::AttemptState::Cancelled => "cancelled",
    }
}

/// What people call a score.
pub fn score_name(name: &str) -> &'static str {
    match name {
        "accuracy" => "accuracy",
        "f1" => "macro F1",
        "matthews" => "Matthews",
        "pearson" => "Pearson",
        "spearman" => "Spearman",
        _ => "score",
    }
}

/// One event of a job's history on one line.
pub fn event_line(event: &pb::JobEvent) -> String {
    let attempt = if event.attempt > 0 { format!(" [attempt {}]", event.attempt) } else { String::new() };
    format!("{}  {:<12} {}{attempt}", clock(event.time.as_ref()), event.kind, event.message)
}

/// All about one job, a fact a line.
pub fn describe_job(job: &pb::Job, attempts: &[pb::Attempt]) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let mut facts = vec![("job", job.name.clone()), ("name", spec.display_name.clone())];
    if !matches!(spec.tenant.as_str(), "" | "default") {
        facts.push(("tenant", spec.tenant.clone()));
    }
    let action = spec.action();
    let trains = !matches!(action, pb::Action::Evaluate | pb::Action::Merge);
    let state = state_text(job);
    facts.push(("state", state));
    facts.push(("step", if trains { step(job) } else { String::new() }));
    if let Some(point) = job.latest.as_ref().filter(|point| point.step > 0) {
        let rate = number(point.tokens_per_second.round() as u64);
        facts.push(("loss", format!("{:.4} at step {} ({rate} tokens/s)", point.loss, number(point.step))));
    }
    if job.world_size > 0 {
        facts.push((
            "workers",
            format!("{} (attempt {}, generation {})", job.world_size, job.attempt, job.generation),
        ));
    }
    facts.push(("sweep", job.sweep.clone()));
    facts.push(("created", date(job.create_time.as_ref())));
    facts.push(("started", date(job.start_time.as_ref())));
    let took = between(job.start_time.as_ref(), job.end_time.as_ref());
    let ended = date(job.end_time.as_ref());
    facts.push(("ended", took.map_or(ended.clone(), |took| format!("{ended} (after {})", duration(took)))));
    facts.push(("base", spec.base.unwrap_or_default().source));
    let data = spec.data.unwrap_or_default();
    facts.push(("train data", sources(&data.train)));
    facts.push(("eval data", sources(&data.eval)));
    facts.push(adapter(action, &spec.adapter.unwrap_or_default()));
    facts.extend(job.result.iter().flat_map(result));
    let mut text = String::new();
    for (name, value) in facts.into_iter().filter(|(_, value)| !value.is_empty()) {
        text += &format!("{name:<16}{value}\n");
    }
    text + &attempts_table(attempts)
}

/// What the user wrote for the files of a data set.
fn sources(files: &[pb::DataRef]) -> String {
    files.iter().map(|file| file.source.as_str()).collect::<Vec<_>>().join(", ")
}

fn step(job: &pb::Job) -> String {
    match job.total_steps {
        0 => number(job.step),
        total => format!("{} of {}", number(job.step), number(total)),
    }
}

/// The adapter that is trained; or what is done, and to which.
fn adapter(action: pb::Action, adapter: &pb::AdapterSpec) -> (&'static str, String) {
    let start = adapter.start.clone().unwrap_or_default();
    let start = if start.job.is_empty() { start.source } else { start.job };
    match action {
        pb::Action::Evaluate => ("evaluates", start),
        pb::Action::Merge => ("merges", start),
        pb::Action::Train | pb::Action::Unspecified => ("adapter", trained(adapter, &start)),
    }
}

fn trained(adapter: &pb::AdapterSpec, start: &str) -> String {
    let targets = adapter.targets.join(", ");
    let form = match adapter.method() {
        pb::AdapterMethod::Full => return "none: full fine-tuning".to_owned(),
        pb::AdapterMethod::Dora => "DoRA",
        pb::AdapterMethod::Lora | pb::AdapterMethod::Unspecified => "LoRA",
    };
    let from = if start.is_empty() { String::new() } else { format!(", from {start}") };
    format!("{form} of rank {}, alpha {}, on {targets}{from}", adapter.rank, adapter.alpha)
}

fn result(result: &pb::JobResult) -> Vec<(&'static str, String)> {
    let eval = |loss: Option<f64>, scores: &[pb::Score]| {
        let loss = loss.map(|loss| format!("loss {loss:.5}"));
        let scores = scores.iter().map(|score| format!("{} {:.5}", score_name(&score.name), score.value));
        loss.into_iter().chain(scores).collect::<Vec<_>>().join(", ")
    };
    let best = if result.best_step > 0 { number(result.best_step) } else { String::new() };
    vec![
        ("eval before", eval(result.eval_loss_before, &result.scores_before)),
        ("eval after", eval(result.eval_loss_after, &result.scores_after)),
        ("result of step", best),
        ("checkpoint", result.checkpoint.clone()),
        ("adapter sha256", result.adapter_sha256.clone()),
    ]
}

fn attempts_table(attempts: &[pb::Attempt]) -> String {
    if attempts.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["ATTEMPT", "STATE", ">FROM STEP", "STARTED", ">TOOK", "WORKERS", "WHY IT ENDED"]);
    for attempt in attempts {
        let took = between(attempt.start_time.as_ref(), attempt.end_time.as_ref());
        let workers: Vec<_> = attempt.workers.iter().map(|worker| short_id(worker)).collect();
        table.row(vec![
            attempt.attempt.to_string(),
            attempt_state_name(attempt.state()).to_owned(),
            number(attempt.start_step + 1),
            date(attempt.start_time.as_ref()),
            took.map_or(String::new(), duration),
            workers.join(" "),
            attempt.message.clone(),
        ]);
    }
    format!("\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_job_says_why() {
        let job = pb::Job {
            name: "jobs/a".into(),
            state: pb::JobState::Queued.into(),
            state_message: "waits for 4 workers, the fleet has 2".into(),
            ..Default::default()
        };
        let text = describe_job(&job, &[]);
        assert!(text.contains("queued: waits for 4 workers, the fleet has 2\n"), "{text}");
        assert!(!text.contains("ended"), "what has not been is left out: {text}");
    }

    #[test]
    fn what_is_done_to_which_adapter_and_in_which_sweep_is_told() {
        let start = pb::AdapterRef { job: "jobs/b".into(), ..Default::default() };
        let adapter = pb::AdapterSpec { rank: 16, start: Some(start), ..Default::default() };
        let spec =
            pb::JobSpec { adapter: Some(adapter), action: pb::Action::Merge.into(), ..Default::default() };
        let job = pb::Job { spec: Some(spec), sweep: "sweeps/s".into(), ..Default::default() };
        let text = describe_job(&job, &[]);
        assert!(
            text.contains("merges          jobs/b\n") && text.contains("sweep           sweeps/s\n"),
            "{text}"
        );
        assert!(!text.contains("LoRA") && !text.contains("step"), "{text}");
    }

    #[test]
    fn attempts_are_listed_with_their_ends() {
        let attempt = pb::Attempt {
            attempt: 1,
            state: pb::AttemptState::Lost.into(),
            message: "all members went away".into(),
            workers: vec!["workers/worker-0".into()],
            ..Default::default()
        };
        let text = describe_job(&pb::Job::default(), &[attempt]);
        assert!(text.contains("worker-0  all members went away"), "{text}");
    }
}
