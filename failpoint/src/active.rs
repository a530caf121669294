//! What is done at a failpoint in a build that has them.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::process::{Signal, getpid, kill_process};

use crate::{
    DEFECT, FAILPOINT, Injected,
    rule::{Action, Rule},
};

/// A rule, and whether it has acted.
struct Armed {
    rule: Rule,
    spent: AtomicBool,
}

static ARMED: LazyLock<Vec<Armed>> = LazyLock::new(|| {
    let rules = Rule::parse_all(&std::env::var(FAILPOINT).unwrap_or_default());
    // A mistyped failpoint would make a test pass that tests nothing.
    let rules = rules.unwrap_or_else(|mistake| {
        eprintln!("{FAILPOINT}: {mistake}");
        std::process::exit(2)
    });
    rules.into_iter().map(|rule| Armed { rule, spent: AtomicBool::new(false) }).collect()
});

static DEFECTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let text = std::env::var(DEFECT).unwrap_or_default();
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
});

pub(crate) fn reach(name: &str, step: u64) -> Result<(), Injected> {
    for armed in ARMED.iter().filter(|armed| armed.rule.matches(name, step)) {
        if !armed.rule.always && armed.spent.swap(true, Ordering::AcqRel) {
            continue;
        }
        eprintln!("failpoint {name} at step {step}: {:?}", armed.rule.action);
        match armed.rule.action {
            Action::Kill => signal(Signal::KILL),
            Action::Stop => signal(Signal::STOP),
            Action::Sleep(time) => thread::sleep(time),
            Action::Error => return Err(Injected { name: name.into(), step }),
        }
    }
    Ok(())
}

pub(crate) fn defect(name: &str) -> bool {
    DEFECTS.iter().any(|defect| defect == name)
}

fn signal(signal: Signal) {
    if let Err(error) = kill_process(getpid(), signal) {
        eprintln!("failpoint: cannot send {signal:?} to this process: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_happens_when_nothing_is_asked_for() {
        assert_eq!(reach("between-reduction-and-update", 3), Ok(()));
        assert!(!defect("fence-off"));
    }
}
