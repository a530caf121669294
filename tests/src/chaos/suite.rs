//! A series of runs: one seed after the other, until the time is over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    check::Undisturbed,
    defect::Defect,
    job::Variant,
    kind::Kind,
    memory::MemoryLimit,
    netns::Network,
    plan::{Deck, Plan},
    run::{Outcome, Setting, run, undisturbed},
    tally::Tally,
};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the first run; each next one has the next seed.
    pub seed: u64,
    /// No run begins after this time.
    pub time: Duration,
    /// At most so many runs; 0: no limit.
    pub runs: u64,
    /// Only these kinds; empty: all that this machine allows.
    pub only: Vec<Kind>,
    /// A run has at most so many faults.
    pub faults: u64,
    /// A planted defect that the suite is to find.
    pub defect: Option<Defect>,
    /// False: the defect decides which faults come, and is not planted.
    pub planted: bool,
    /// Stop at the first run in which something was wrong.
    pub stop_at_violation: bool,
}

/// What this machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub namespaces: bool,
    pub memory_limits: bool,
    pub mounts: bool,
}

impl Machine {
    /// Tries what can be done here.
    pub fn look() -> Machine {
        let root = rustix::process::geteuid().is_root();
        let namespaces = Network::start().is_ok_and(|mut network| network.add().is_ok());
        Machine { namespaces, memory_limits: MemoryLimit::is_possible(), mounts: root }
    }

    /// Whether a kind of fault can be made here.
    pub fn allows(self, kind: Kind) -> bool {
        let needs = !kind.needs_namespaces() || self.namespaces;
        needs
            && match kind {
                Kind::LimitMemory => self.memory_limits,
                Kind::FillDisk => self.mounts,
                _ => true,
            }
    }
}

/// Runs it; `say` gets each line of progress, `note` the tally of each run.
pub async fn suite(
    options: &Options,
    say: &mut dyn FnMut(&str),
    note: &mut dyn FnMut(&Tally) -> Result<()>,
) -> Result<Tally> {
    let machine = Machine::look();
    let deck = deck(options, machine)?;
    say(&format!("seed {}; {machine:?}; {} kinds of faults", options.seed, deck.kinds.len()));
    let planted = options.defect.filter(|_| options.planted);
    let setting = Setting { namespaces: machine.namespaces, defect: planted.map(Defect::name) };
    let (mut tally, mut known) = (Tally::default(), BTreeMap::<(Variant, u64), Undisturbed>::new());
    let start = Instant::now();
    while start.elapsed() < options.time && (options.runs == 0 || tally.jobs < options.runs) {
        let plan = Plan::draw(options.seed.wrapping_add(tally.jobs), &deck);
        let without = match known.get(&(plan.variant, plan.steps)) {
            Some(without) => without.clone(),
            None => {
                say(&format!("{:?} without any fault", plan.variant));
                undisturbed(plan.variant, plan.steps).await?
            }
        };
        known.insert((plan.variant, plan.steps), without.clone());
        say(&describe(&plan));
        let began = Instant::now();
        let outcome = run(&plan, setting, &without).await;
        let outcome = outcome.with_context(|| format!("the run of seed {}", plan.seed))?;
        let mut one = Tally::default();
        one.add(&outcome.faults, &outcome.findings);
        note(&one)?;
        tally.merge(&one);
        say(&result(&outcome, began.elapsed()));
        if options.stop_at_violation && tally.violations > 0 {
            break;
        }
    }
    Ok(tally)
}

fn deck(options: &Options, machine: Machine) -> Result<Deck> {
    if options.defect.is_some() && !lorafleet_failpoint::ON {
        bail!("this build has no failpoints");
    }
    let wanted = if options.only.is_empty() { Kind::all() } else { options.only.clone() };
    let (kinds, refused): (Vec<Kind>, Vec<Kind>) = wanted.into_iter().partition(|kind| machine.allows(*kind));
    if !options.only.is_empty() && !refused.is_empty() {
        bail!("this machine does not allow {refused:?}: {machine:?}");
    }
    let first = options.defect.map_or_else(Vec::new, Defect::faults);
    Ok(Deck { kinds, first, faults: options.faults.max(1) })
}

fn describe(plan: &Plan) -> String {
    let fault = |fault: &super::plan::Fault| {
        format!("{} at {}{}", fault.kind, fault.at_step, if fault.overlaps { " with" } else { "" })
    };
    let faults: Vec<String> = plan.faults.iter().map(fault).collect();
    format!(
        "seed {}: {:?}, {} workers, {} coordinators: {}",
        plan.seed,
        plan.variant,
        plan.workers,
        plan.coordinators,
        faults.join(", ")
    )
}

fn result(outcome: &Outcome, time: Duration) -> String {
    let fault =
        |(kind, effective): &(Kind, bool)| format!("{kind}{}", if *effective { "" } else { " (no effect)" });
    let faults: Vec<String> = outcome.faults.iter().map(fault).collect();
    let mut text = format!("  {:.1} s: {}", time.as_secs_f64(), faults.join(", "));
    for violation in &outcome.findings.violations {
        text += &format!("\n  {violation}");
    }
    if let Some(story) = &outcome.story {
        text += &format!("\n{story}");
    }
    text
}
