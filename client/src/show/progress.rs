//! A running job on a terminal: one live bar under the history, or plain lines where there is no terminal.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use lorafleet::pb;

use super::{duration, event_line, number, score_name, state_line};

/// Plain progress lines come no more often than this.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where updates of a job are drawn: standard error, so that standard output stays for results.
#[derive(Debug)]
pub struct Progress {
    /// The bar, on a terminal.
    bar: Option<ProgressBar>,
    total_steps: u64,
    last_line: Option<Instant>,
    /// The latest evaluation: its loss, and its first other score.
    eval: Option<(f64, Option<pb::Score>)>,
    /// Why the job waits, as last told.
    waiting: String,
}

impl Progress {
    /// Draws on standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            bar.enable_steady_tick(Duration::from_millis(200));
            style(&bar, "  {spinner} {wide_msg}");
            bar
        });
        Self { bar, total_steps: 0, last_line: None, eval: None, waiting: String::new() }
    }

    /// The job changed.
    pub fn job(&mut self, job: &pb::Job) {
        if job.total_steps != self.total_steps {
            self.total_steps = job.total_steps;
            if let Some(bar) = &self.bar {
                bar.set_length(job.total_steps);
            }
        }
        if job.state() == pb::JobState::Queued {
            self.wait(state_line(job));
        } else if job.state() == pb::JobState::Running && job.step == 0 {
            self.wait(format!("{} loads base and data, and evaluates", job.name));
        } else {
            self.waiting.clear();
        }
    }

    /// The job's history has a new entry.
    pub fn event(&mut self, event: &pb::JobEvent) {
        self.line(&format!("  {}", event_line(event)));
    }

    /// A step is done.
    pub fn point(&mut self, point: &pb::MetricPoint) {
        if let Some(loss) = point.eval_loss {
            self.eval = Some((loss, point.eval_scores.first().cloned()));
        }
        if point.step == 0 {
            return;
        }
        let text = self.describe(point);
        if let Some(bar) = &self.bar {
            style(bar, "  [{bar:28}] {wide_msg}");
            bar.set_position(point.step);
            bar.set_message(text);
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || point.eval_loss.is_some() || point.step == self.total_steps {
            self.last_line = Some(Instant::now());
            self.line(&format!("  {text}"));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn describe(&self, point: &pb::MetricPoint) -> String {
        let step = match self.total_steps {
            0 => format!("step {}", number(point.step)),
            total => format!("step {}/{}", number(point.step), number(total)),
        };
        let rate = number(point.tokens_per_second.round() as u64);
        let mut text = format!("{step}  loss {:.3}  {rate} tokens/s", point.loss);
        if let Some((loss, score)) = &self.eval {
            text += &format!("  eval {loss:.3}");
            if let Some(score) = score {
                text += &format!(" {} {:.3}", score_name(&score.name), score.value);
            }
        }
        if point.seconds_left.is_finite() && point.seconds_left > 0.0 {
            // A wild estimate must not overflow a Duration.
            text += &format!("  {} left", duration(Duration::from_secs_f64(point.seconds_left.min(1e9))));
        }
        text
    }

    fn wait(&mut self, waiting: String) {
        if waiting == self.waiting {
            return;
        }
        match &self.bar {
            Some(bar) => {
                style(bar, "  {spinner} {wide_msg}");
                bar.set_message(waiting.clone());
            }
            None => eprintln!("  {waiting}"),
        }
        self.waiting = waiting;
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line() {
        let mut progress = Progress { bar: None, ..Progress::new() };
        progress.total_steps = 42;
        progress.eval = Some((4.05, None));
        let point = pb::MetricPoint {
            step: 7,
            loss: 3.8124,
            tokens_per_second: 4321.4,
            seconds_left: 80.2,
            ..Default::default()
        };
        let text = progress.describe(&point);
        assert_eq!(text, "step 7/42  loss 3.812  4,321 tokens/s  eval 4.050  1m 20s left");
        progress.eval = Some((0.71, Some(pb::Score { name: "accuracy".into(), value: 0.8125 })));
        assert!(progress.describe(&point).contains("  eval 0.710 accuracy 0.812  "));
    }

    #[test]
    fn a_wild_estimate_is_survived() {
        let progress = Progress { bar: None, ..Progress::new() };
        let point = pb::MetricPoint { step: 1, seconds_left: 1e300, ..Default::default() };
        assert!(progress.describe(&point).ends_with("left"));
    }
}
