//! What a job came to, in a screenful.

use std::path::Path;

use lorafleet::{pb, short_id};

use super::{
    bytes, duration, number, score_name, state_name,
    text::{between, wrapped},
};

/// Widest line of an answer.
const WIDTH: usize = 92;
/// Where the values stand.
const INDENT: &str = "                  ";

/// Where the adapter is to be had.
#[derive(Debug)]
pub enum Adapter<'a> {
    /// It was downloaded into this folder.
    Downloaded(&'a Path),
    /// In the store.
    Stored,
}

/// Tells how a job ended; for one that succeeded, what it was worth.
pub fn summary(job: &pb::Job, adapter: &Adapter<'_>) -> String {
    let name = job.spec.as_ref().map_or("", |spec| spec.display_name.as_str());
    let took = between(job.start_time.as_ref(), job.end_time.as_ref())
        .map_or(String::new(), |took| format!(" in {}", duration(took)));
    let action = job.spec.as_ref().map_or(pb::Action::Train, pb::JobSpec::action);
    let trains = !matches!(action, pb::Action::Evaluate | pb::Action::Merge);
    let steps = if trains { format!(" after {} steps", number(job.step)) } else { String::new() };
    let head = format!("{name} ({}) {}{steps}{took}", job.name, state_name(job.state()));
    let said = match job.state_message.as_str() {
        "" => head.clone(),
        why => format!("{head}: {why}"),
    };
    let Some(result) = job.result.as_ref().filter(|_| job.state() == pb::JobState::Succeeded) else {
        return said;
    };
    let mut lines = vec![if trains { head } else { said }, String::new()];
    let facts = if trains { facts(result, job.step) } else { measured(result) };
    lines.extend(facts.into_iter().map(|(name, value)| format!("  {name:<16}{value}")));
    if action == pb::Action::Evaluate {
        return lines.join("\n");
    }
    for answer in &result.answers {
        lines.push(String::new());
        for (who, text) in [("prompt", &answer.prompt), ("base", &answer.base), ("adapter", &answer.adapter)]
        {
            lines.push(format!("  {who:<16}{}", wrapped(text, WIDTH, INDENT)));
        }
    }
    lines.push(String::new());
    lines.extend(whereabouts(job, adapter));
    lines.join("\n")
}

/// What an evaluation measured; nothing of a merge.
fn measured(result: &pb::JobResult) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(loss) = result.eval_loss_after {
        let of = if result.scores_after.is_empty() { "tokens" } else { "examples" };
        facts.push(("evaluation loss", format!("{loss:.4} over {} {of}", number(result.eval_tokens))));
    }
    let score = |score: &pb::Score| (score_name(&score.name), format!("{:.4}", score.value));
    facts.extend(result.scores_after.iter().map(score));
    facts.extend(result.data.as_ref().map(|data| ("data", data_line(data))));
    facts
}

fn facts(result: &pb::JobResult, steps: u64) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    // Scores are of examples; a perplexity is of tokens.
    let classifies = !result.scores_after.is_empty();
    if let (Some(before), Some(after)) = (result.eval_loss_before, result.eval_loss_after) {
        let change = 100.0 * (after / before - 1.0);
        facts.push((
            "evaluation loss",
            if classifies {
                format!(
                    "{before:.4} before, {after:.4} after ({change:+.1} %) over {} examples",
                    number(result.eval_tokens)
                )
            } else {
                format!(
                    "{before:.4} before, {after:.4} after ({change:+.1} %; perplexity {:.1} to {:.1}) over {} tokens",
                    before.exp(),
                    after.exp(),
                    number(result.eval_tokens)
                )
            },
        ));
    }
    facts.extend(scores(&result.scores_before, &result.scores_after));
    if result.stopped_early {
        facts.push(("stopped early", "evaluations no longer got better (eval.patience)".to_owned()));
    }
    if result.best_step > 0 && result.best_step < steps {
        facts.push(("best", format!("the result is that of step {}", number(result.best_step))));
    }
    let share = 100.0 * result.trainable_parameters as f64 / result.total_parameters.max(1) as f64;
    facts.push((
        "trained",
        format!(
            "{} of {} parameters ({share:.2} %)",
            number(result.trainable_parameters),
            number(result.total_parameters)
        ),
    ));
    facts.push((
        "exchanged",
        match result.bytes_sent_per_step {
            0 => "nothing: one worker trained alone".to_owned(),
            sent => format!("{} sent by each worker in a step ({} bytes)", bytes(sent), number(sent)),
        },
    ));
    if let Some(data) = &result.data {
        facts.push(("data", data_line(data)));
    }
    facts
}

/// A line for each score of the result.
fn scores(before: &[pb::Score], after: &[pb::Score]) -> Vec<(&'static str, String)> {
    let line = |after: &pb::Score| {
        let before = before.iter().find(|before| before.name == after.name);
        let before = before.map_or(String::new(), |before| format!("{:.4} before, ", before.value));
        (score_name(&after.name), format!("{before}{:.4} after", after.value))
    };
    after.iter().map(line).collect()
}

/// Labels that are shown by name.
const LABELS_SHOWN: usize = 12;

fn data_line(data: &pb::DataSummary) -> String {
    let from = if data.container.is_empty() { String::new() } else { format!(" from {}", data.container) };
    let labelled = if data.labelled_tokens == data.examples {
        String::new() // the label is the whole's
    } else {
        format!(", {} of them labelled", number(data.labelled_tokens))
    };
    let mut text = format!(
        "{} examples ({}{from}), {} tokens{labelled}",
        number(data.examples),
        data.format,
        number(data.tokens)
    );
    if !data.labels.is_empty() {
        let labels: Vec<_> = data.labels.iter().take(LABELS_SHOWN).map(|label| label.name.as_str()).collect();
        let more = data.labels.len().saturating_sub(LABELS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text += &format!("; {} labels: {}{more}", data.labels.len(), labels.join(", "));
    }
    if data.truncated > 0 {
        text += &format!("; {} examples cut off at max_length", number(data.truncated));
    }
    if data.skipped > 0 {
        text += &format!("; {} left out, nothing in them to learn within max_length", number(data.skipped));
    }
    text
}

fn whereabouts(job: &pb::Job, adapter: &Adapter<'_>) -> Vec<String> {
    let id = short_id(&job.name);
    let spec = job.spec.clone().unwrap_or_default();
    let full = spec.action() == pb::Action::Merge
        || spec.adapter.as_ref().is_some_and(|adapter| adapter.method() == pb::AdapterMethod::Full);
    let try_it = match spec.task() {
        pb::Task::Classification => format!("lorafleet classify {id} --text \"…\""),
        pb::Task::CausalLm | pb::Task::Unspecified => format!("lorafleet generate {id} --prompt \"…\""),
    };
    match adapter {
        Adapter::Downloaded(folder) => {
            let what = if full { "model in" } else { "adapter in" };
            vec![format!("  {what:<16}{}", folder.display())]
        }
        Adapter::Stored => vec![
            format!("  {:<16}lorafleet download {id} DIR", "download"),
            format!("  {:<16}{try_it}", "try it"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn succeeded() -> pb::Job {
        pb::Job {
            name: "jobs/a1".into(),
            spec: Some(pb::JobSpec { display_name: "games".into(), ..Default::default() }),
            state: pb::JobState::Succeeded.into(),
            step: 42,
            result: Some(pb::JobResult {
                trainable_parameters: 500_000,
                total_parameters: 6_000_000,
                eval_loss_before: Some(4.051),
                eval_loss_after: Some(3.671),
                eval_tokens: 8291,
                answers: vec![pb::PromptAnswer {
                    prompt: "Describe it".into(),
                    base: "no".into(),
                    adapter: "yes\nindeed".into(),
                }],
                bytes_sent_per_step: 4_000_024,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_success_is_told_whole() {
        let text = summary(&succeeded(), &Adapter::Downloaded(Path::new("out")));
        for part in [
            "games (jobs/a1) succeeded after 42 steps",
            "4.0510 before, 3.6710 after (-9.4 %; perplexity 57.5 to 39.3) over 8,291 tokens",
            "500,000 of 6,000,000 parameters (8.33 %)",
            "4.00 MB sent by each worker in a step (4,000,024 bytes)",
            "  prompt          Describe it",
            "  adapter         yes\n                  indeed",
            "  adapter in      out",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn scores_have_lines_of_their_own() {
        let mut job = succeeded();
        let result = job.result.as_mut().unwrap();
        let score = |value| vec![pb::Score { name: "f1".into(), value }];
        (result.scores_before, result.scores_after) = (score(0.25), score(0.875));
        (result.best_step, result.stopped_early) = (30, true);
        let text = summary(&job, &Adapter::Stored);
        for part in [
            "4.0510 before, 3.6710 after (-9.4 %) over 8,291 examples",
            "macro F1        0.2500 before, 0.8750 after",
            "stopped early   evaluations no longer got better",
            "best            the result is that of step 30",
            "lorafleet generate a1 --prompt",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        job.spec.as_mut().unwrap().set_task(pb::Task::Classification);
        assert!(summary(&job, &Adapter::Stored).contains("lorafleet classify a1 --text"));
    }

    #[test]
    fn an_evaluation_tells_what_it_measured_and_a_merge_where_it_lies() {
        let mut job = succeeded();
        job.state_message = "evaluated".into();
        job.spec.as_mut().unwrap().set_action(pb::Action::Evaluate);
        let text = summary(&job, &Adapter::Stored);
        assert_eq!(
            text,
            "games (jobs/a1) succeeded: evaluated\n\n  evaluation loss 3.6710 over 8,291 tokens"
        );
        job.spec.as_mut().unwrap().set_action(pb::Action::Merge);
        assert!(summary(&job, &Adapter::Stored).contains("lorafleet download a1 DIR"));
    }

    #[test]
    fn a_failure_says_why() {
        let mut job = succeeded();
        job.set_state(pb::JobState::Failed);
        job.state_message = "the loss is not a number at step 7: lower train.lr".into();
        let text = summary(&job, &Adapter::Stored);
        assert!(text.ends_with("failed after 42 steps: the loss is not a number at step 7: lower train.lr"));
    }
}
