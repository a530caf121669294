//! A sweep on a terminal: its jobs in a table, their evaluation losses in a plot, the best of them in a line.

use lorafleet::{pb, short_id};
use lorafleet_spec::sweep::describe;

use super::{Table, number, state_name};

/// Columns and lines of the plot's field.
const WIDTH: usize = 64;
const HEIGHT: usize = 14;

/// What people call a sweep's state.
pub fn sweep_state_name(state: pb::SweepState) -> &'static str {
    match state {
        pb::SweepState::Unspecified => "unknown",
        pb::SweepState::Running => "running",
        pb::SweepState::Succeeded => "succeeded",
        pb::SweepState::Failed => "failed",
        pb::SweepState::Cancelled => "cancelled",
    }
}

/// A sweep on one line.
pub fn sweep_line(sweep: &pb::Sweep) -> String {
    let counts = [
        (sweep.queued, "queued"),
        (sweep.running, "running"),
        (sweep.paused, "paused"),
        (sweep.succeeded, "succeeded"),
        (sweep.failed, "failed"),
        (sweep.ended_early, "ended early"),
        (sweep.cancelled.saturating_sub(sweep.ended_early), "cancelled"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let best =
        sweep.best.as_ref().map_or(String::new(), |best| format!("; best so far: {}", best_line(best)));
    format!("{} jobs: {}{best}", sweep.children, counts.collect::<Vec<_>>().join(", "))
}

/// All about a sweep.
pub fn describe_sweep(sweep: &pb::Sweep, children: &[pb::SweepChild]) -> String {
    let name = sweep.spec.as_ref().map_or("", |spec| spec.display_name.as_str());
    let title = if name.is_empty() { sweep.name.clone() } else { format!("{name} ({})", sweep.name) };
    let mut parts =
        vec![format!("{title} {}", sweep_state_name(sweep.state())), table(sweep, children).to_string()];
    let best = sweep.best.as_ref().map(|best| best.index);
    parts.extend(plot(children, best));
    if let Some(best) = &sweep.best {
        let over = lorafleet::is_over(sweep);
        let what = if over { "best" } else { "best so far" };
        let next = match best.state() {
            pb::JobState::Succeeded => format!("\nits adapter: lorafleet download {}", short_id(&best.job)),
            _ => String::new(),
        };
        parts.push(format!("{what}: {}{next}", best_line(best)));
    }
    parts.join("\n\n")
}

fn best_line(best: &pb::SweepChild) -> String {
    let loss = best.evaluations.last().map_or(String::new(), |evaluation| {
        format!(", evaluation loss {:.4} at step {}", evaluation.loss, number(evaluation.step))
    });
    format!("child {}, {} ({}){loss}", best.index, best.job, describe(&best.parameters))
}

fn table(sweep: &pb::Sweep, children: &[pb::SweepChild]) -> Table {
    let paths: Vec<&str> =
        sweep.sweep.iter().flat_map(|sweep| &sweep.parameters).map(|p| p.path.as_str()).collect();
    // The last part of a path says enough, where no other parameter ends alike.
    let short = |path: &&str| {
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_uppercase();
        let alike = paths.iter().filter(|other| last(other) == last(path)).count();
        format!(">{}", if alike > 1 { path.to_uppercase() } else { last(path) })
    };
    let settings: Vec<String> = paths.iter().map(short).collect();
    let mut titles = vec![">CHILD", "JOB"];
    titles.extend(settings.iter().map(String::as_str));
    titles.extend(["STATE", ">STEP", ">LOSS", ">EVAL LOSS", ""]);
    let mut table = Table::new(&titles);
    let best = sweep.best.as_ref().map(|best| best.index);
    for child in children {
        let mut cells = vec![child.index.to_string(), short_id(&child.job).to_owned()];
        cells.extend(paths.iter().map(|path| {
            let setting = child.parameters.iter().find(|setting| setting.path == *path);
            setting.map_or(String::new(), |setting| setting.json.clone())
        }));
        let steps = match child.total_steps {
            0 => number(child.step),
            total => format!("{}/{}", number(child.step), number(total)),
        };
        let four = |loss: f64| format!("{loss:.4}");
        cells.extend([
            state_name(child.state()).to_owned(),
            steps,
            child.loss.map_or(String::new(), four),
            child.evaluations.last().map_or(String::new(), |evaluation| four(evaluation.loss)),
            note(child, best),
        ]);
        table.row(cells);
    }
    table
}

fn note(child: &pb::SweepChild, best: Option<u32>) -> String {
    if best == Some(child.index) {
        "best".to_owned()
    } else if child.ended_at > 0 {
        format!("ended at step {}", number(child.ended_at))
    } else if child.state() == pb::JobState::Failed {
        child.state_message.clone()
    } else {
        String::new()
    }
}

/// Evaluation losses over steps: `*` the best child's, `o` those of the others that went on, `.` of those that ended
/// early or badly. None where there is no more than one step.
fn plot(children: &[pb::SweepChild], best: Option<u32>) -> Option<String> {
    let points = || {
        children.iter().flat_map(|child| child.evaluations.iter().map(move |evaluation| (child, evaluation)))
    };
    let finite = || points().filter(|(_, evaluation)| evaluation.loss.is_finite());
    let last = finite().map(|(_, evaluation)| evaluation.step).max().filter(|step| *step > 0)?;
    let low = finite().map(|(_, evaluation)| evaluation.loss).fold(f64::INFINITY, f64::min);
    let high = finite().map(|(_, evaluation)| evaluation.loss).fold(f64::NEG_INFINITY, f64::max);
    let mut field = vec![[' '; WIDTH]; HEIGHT];
    let rank = |mark: char| [' ', '.', 'o', '*'].iter().position(|known| *known == mark);
    for (child, evaluation) in finite() {
        let mark = match child.state() {
            _ if best == Some(child.index) => '*',
            pb::JobState::Cancelled | pb::JobState::Failed => '.',
            _ => 'o',
        };
        let column = evaluation.step as f64 / last as f64 * (WIDTH - 1) as f64;
        let height = if high > low { (evaluation.loss - low) / (high - low) } else { 0.0 };
        let line = (1.0 - height) * (HEIGHT - 1) as f64;
        let cell = &mut field[line.round() as usize][column.round() as usize];
        if rank(mark) > rank(*cell) {
            *cell = mark;
        }
    }
    let label = |line: usize| high - (high - low) * line as f64 / (HEIGHT - 1) as f64;
    let mut lines = vec!["evaluation loss   * best   o others   . ended early or failed".to_owned()];
    for (line, cells) in field.iter().enumerate() {
        let label =
            if line % 4 == 0 || line + 1 == HEIGHT { format!("{:8.4}", label(line)) } else { " ".repeat(8) };
        lines.push(format!("{label} |{}", cells.iter().collect::<String>()).trim_end().to_owned());
    }
    let end = format!("step {}", number(last));
    lines.push(format!("{:8} +{}", "", "-".repeat(WIDTH)));
    lines.push(format!("{:8}  0{end:>width$}", "", width = WIDTH - 1));
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(index: u32, state: pb::JobState, losses: &[f64]) -> pb::SweepChild {
        let evaluation = |(place, &loss): (u64, &f64)| pb::SweepEvaluation { step: place * 10, loss };
        pb::SweepChild {
            job: format!("jobs/j{index}"),
            index,
            state: state.into(),
            parameters: vec![pb::SweepSetting { path: "adapter.rank".into(), json: (index * 8).to_string() }],
            evaluations: (0..).zip(losses).map(evaluation).collect(),
            step: 10 * losses.len() as u64,
            total_steps: 20,
            ..Default::default()
        }
    }

    #[test]
    fn a_sweep_is_a_table_a_plot_and_its_best() {
        let ended = pb::SweepChild { ended_at: 10, ..child(1, pb::JobState::Cancelled, &[4.0, 3.5]) };
        let children = [ended, child(2, pb::JobState::Succeeded, &[4.0, 3.0, 2.0])];
        let rank = pb::SweepParameter { path: "adapter.rank".into(), choices: None };
        let sweep = pb::Sweep {
            name: "sweeps/s".into(),
            state: pb::SweepState::Succeeded.into(),
            sweep: Some(pb::SweepSpec { parameters: vec![rank], ..Default::default() }),
            best: Some(children[1].clone()),
            children: 2,
            cancelled: 1,
            ended_early: 1,
            succeeded: 1,
            ..Default::default()
        };
        let text = describe_sweep(&sweep, &children);
        for part in [
            "CHILD  JOB  RANK  STATE       STEP  LOSS  EVAL LOSS\n",
            "    1  j1      8  cancelled  20/20           3.5000  ended at step 10\n",
            "    2  j2     16  succeeded  30/20           2.0000  best\n",
            "  4.0000 |*\n",
            "  2.0000 |                                                               *\n",
            "best: child 2, jobs/j2 (adapter.rank=16), evaluation loss 2.0000 at step 20\n",
            "lorafleet download j2",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert_eq!(text.matches('*').count(), 4, "three points and the legend");
        assert!(sweep_line(&sweep).starts_with("2 jobs: 1 succeeded, 1 ended early; best so far: child 2"));
    }

    #[test]
    fn without_evaluations_there_is_no_plot() {
        assert_eq!(plot(&[child(1, pb::JobState::Queued, &[])], None), None);
        assert_eq!(plot(&[child(1, pb::JobState::Running, &[4.0])], None), None);
        assert!(plot(&[child(1, pb::JobState::Running, &[4.0, f64::NAN, 4.0])], None).is_some());
    }
}
