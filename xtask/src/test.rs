//! `cargo xtask test`: everything that must hold before a change lands.

use std::process::ExitCode;

use crate::{
    command::{cargo, shown_and_read, succeeds},
    counts::Counts,
    prerequisites,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    prerequisites::postgres()?;
    prerequisites::deployment()?;
    prerequisites::lints()?;
    let mut broken = Vec::new();
    let steps: [(&str, &[&str]); 3] = [
        ("formatting", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]),
        // Some tests run the binaries.
        ("build", &["build", "--workspace", "--bins"]),
    ];
    for (name, args) in steps {
        if !succeeds(&mut cargo(args))? {
            broken.push(name);
        }
    }
    let mut counts = Counts::default();
    if !broken.contains(&"build") {
        for (name, args) in test_commands(args.filter.as_deref()) {
            let (lines, success) = shown_and_read(&mut cargo(&args))?;
            lines.iter().filter_map(|line| Counts::of_line(line)).for_each(|found| counts += found);
            if !success {
                broken.push(name);
            }
        }
    }
    let fine = broken.is_empty() && counts.failed == 0 && counts.passed > 0;
    if !fine {
        let what = if broken.is_empty() { "no test ran".to_owned() } else { broken.join(", ") };
        eprintln!("not in order: {what}");
    }
    println!("{counts}");
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The commands that run tests: nextest where it is installed (a process for each test), and the doc tests.
fn test_commands(filter: Option<&str>) -> Vec<(&'static str, Vec<&str>)> {
    let nextest = cargo(&["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    let mut tests = if nextest {
        vec!["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        vec!["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]
    };
    let mut docs = vec!["test", "--workspace", "--doc", "--no-fail-fast"];
    tests.extend(filter);
    docs.extend(filter);
    vec![("tests", tests), ("doc tests", docs)]
}
