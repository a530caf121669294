//! One run: a fleet, a job, its faults, and what was left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lorafleet_proto::v1 as pb;

use super::{
    check::{Findings, Rule, Undisturbed, Violation, check},
    effect::{Effect, Gauge},
    inject::{Injected, inject},
    job::Variant,
    kind::{Kind, Point},
    plan::{Fault, Plan},
    record::Record,
    rig::{Layout, Pace, Rig, Start},
};

const TICK: Duration = Duration::from_millis(50);
/// A job must end within this time after its last fault is over.
const PATIENCE: Duration = Duration::from_secs(180);
/// The fleet's keeper notices a dead worker after this time.
const REPLACED_AFTER: Duration = Duration::from_millis(1500);
/// Each variant writes a checkpoint every so many steps.
const CHECKPOINT_EVERY: u64 = 5;

/// How runs are made on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    pub namespaces: bool,
    pub defect: Option<&'a str>,
}

/// What came of a run.
pub struct Outcome {
    /// Each fault that was done, and whether it had an effect.
    pub faults: Vec<(Kind, bool)>,
    pub findings: Findings,
    /// The history, where something was wrong; and where the logs are.
    pub story: Option<String>,
}

/// A run in progress.
struct Course<'a> {
    plan: &'a Plan,
    rig: Rig,
    job: String,
    /// Faults that are yet to come, the next one last.
    pending: Vec<Fault>,
    lasting: Vec<Injected>,
    over: Vec<(Kind, Effect)>,
    /// What the next fault may overlap with has been said by the one before.
    overlap: bool,
    died: Option<Instant>,
}

/// Trains a variant for so many steps without any fault.
pub async fn undisturbed(variant: Variant, steps: u64) -> Result<Undisturbed> {
    let mut rig = Rig::start(Layout { coordinators: 1, namespaces: false, pace: Pace::Short }, None).await?;
    rig.add_worker(&Start::default())?;
    let file = variant.write(steps, "undisturbed", &rig.home("client")?, (1, 1))?;
    let job = rig.submit(&file)?;
    let start = Instant::now();
    while rig.client().job(&job).await?.state() as i32 <= pb::JobState::Running as i32 {
        anyhow::ensure!(start.elapsed() < PATIENCE, "the undisturbed job did not end within {PATIENCE:?}");
        tokio::time::sleep(TICK).await;
    }
    let record = Record::collect(&rig, &job).await?;
    Undisturbed::of(&record).with_context(|| format!("without any fault: {}", record.history()))
}

/// Makes the run.
pub async fn run(plan: &Plan, setting: Setting<'_>, undisturbed: &Undisturbed) -> Result<Outcome> {
    let layout =
        Layout { coordinators: plan.coordinators, namespaces: setting.namespaces, pace: Pace::Short };
    let mut rig = Rig::start(layout, setting.defect).await?;
    for number in 0..plan.workers {
        let failpoint = failpoints(plan, number);
        rig.add_worker(&Start { failpoint: failpoint.as_deref(), full_disk: false })?;
    }
    let file = plan.variant.write(plan.steps, "chaos", &rig.home("client")?, (1, 4))?;
    let job = rig.submit(&file)?;
    let (points, mut pending): (Vec<Fault>, Vec<Fault>) =
        plan.faults.iter().cloned().partition(|fault| matches!(fault.kind, Kind::Failpoint(_)));
    pending.reverse();
    let before = rig.reading_places();
    let armed = points.iter().filter_map(|fault| {
        let Kind::Failpoint(point) = fault.kind else { return None };
        let gauge = Gauge::Reached(point);
        Some((fault.kind, Effect { gauge, before, after: None, events: 0, at_step: fault.at_step }))
    });
    let over = armed.collect();
    let mut course =
        Course { plan, rig, job, pending, lasting: Vec::new(), over, overlap: false, died: None };
    let ended = course.follow().await?;
    course.conclude(ended, undisturbed).await
}

/// What the worker of that number is told to do at failpoints.
fn failpoints(plan: &Plan, number: u32) -> Option<String> {
    let rule = |fault: &Fault| {
        let Kind::Failpoint(point) = fault.kind else { return None };
        let meant = fault.target % u64::from(plan.workers) == u64::from(number);
        let chosen = match point {
            // Only the member that gives its state comes there. The next one to give it dies, too, until a newcomer is
            // left alone with what it has.
            Point::MidBroadcast => true,
            _ if point.is_checkpoints() => true,
            _ => meant,
        };
        chosen.then(|| format!("{}{}=kill", point.name(), at(point, fault)))
    };
    let rules: Vec<String> = plan.faults.iter().filter_map(rule).collect();
    (!rules.is_empty()).then(|| rules.join(","))
}

/// The step at which a point acts, where that is known in advance.
fn at(point: Point, fault: &Fault) -> String {
    match point {
        Point::MidReduction | Point::BetweenReductionAndUpdate => format!("@{}", fault.at_step + 1),
        // Counted in operations of the generation: the exchange of positions, then the state's parts.
        Point::MidBroadcast => format!("@{}", 3 + (fault.target >> 8) % 3),
        _ if point.is_checkpoints() => format!("@{}", fault.at_step.next_multiple_of(CHECKPOINT_EVERY)),
        _ => String::new(),
    }
}

impl Course<'_> {
    /// Until the job has ended and no fault lasts, or patience is at an end. Whether it ended.
    async fn follow(&mut self) -> Result<bool> {
        let mut step = 0;
        let mut last_fault = Instant::now();
        loop {
            self.heal(false).await?;
            self.keep_workers()?;
            if let Ok(job) = self.rig.client().job(&self.job).await {
                step = job.step;
                if job.state() as i32 > pb::JobState::Running as i32 {
                    self.heal(true).await?;
                    return Ok(true);
                }
            }
            let free = self.lasting.is_empty() || self.overlap;
            let workers = self.rig.workers.len();
            let due = |fault: &Fault| step >= fault.at_step && workers >= fault.kind.workers_needed();
            if free && self.pending.last().is_some_and(due) {
                self.next_fault().await?;
            }
            if !self.lasting.is_empty() {
                last_fault = Instant::now();
            } else if last_fault.elapsed() > PATIENCE {
                return Ok(false);
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn next_fault(&mut self) -> Result<()> {
        let Some(fault) = self.pending.pop() else { return Ok(()) };
        // Unanswered: a coordinator or Postgres is away; then events from the start are looked at.
        let events = self.rig.client().events(&self.job).await.map_or(0, |events| events.len() as u64);
        self.rig.reap();
        self.overlap = fault.overlaps;
        let injected = inject(&mut self.rig, &fault, events).await;
        let injected = injected.with_context(|| format!("{} at step {}", fault.kind, fault.at_step))?;
        self.lasting.push(injected);
        Ok(())
    }

    /// Undoes the faults whose time is over, or all.
    async fn heal(&mut self, all: bool) -> Result<()> {
        let now = Instant::now();
        let (due, rest) = self.lasting.drain(..).partition(|injected| all || injected.until <= now);
        self.lasting = rest;
        for mut injected in due as Vec<Injected> {
            injected.heal(&mut self.rig).await.with_context(|| format!("undo {}", injected.kind))?;
            self.over.push((injected.kind, injected.effect));
        }
        Ok(())
    }

    /// Dead workers are replaced, as whoever runs a fleet would.
    fn keep_workers(&mut self) -> Result<()> {
        if self.rig.reap() >= self.plan.workers as usize {
            self.died = None;
            return Ok(());
        }
        if self.died.get_or_insert_with(Instant::now).elapsed() > REPLACED_AFTER {
            self.rig.add_worker(&Start::default())?;
            self.died = None;
        }
        Ok(())
    }

    async fn conclude(mut self, ended: bool, undisturbed: &Undisturbed) -> Result<Outcome> {
        let record = Record::collect(&self.rig, &self.job).await?;
        let faults = self.over.iter().map(|(kind, effect)| (*kind, effect.is_there(&self.rig, &record)));
        let faults = faults.collect();
        let mut findings = check(&record, undisturbed);
        if !ended {
            let detail = format!("the job had not ended {PATIENCE:?} after its last fault");
            findings.violations.insert(0, Violation { rule: Rule::EndsWell, detail });
        }
        let story = (!findings.violations.is_empty())
            .then(|| format!("{}  logs: {}", record.history(), self.rig.keep_logs().display()));
        Ok(Outcome { faults, findings, story })
    }
}
