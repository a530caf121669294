//! `cargo xtask simulate`: a week of a large fleet by the scheduler and by two simple rules, written into
//! docs/scheduling.md.

mod plot;

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    bench::last_json,
    command::output,
    fleet,
    workspace::{binary, root},
};

/// Who decides, and what it is called.
const POLICIES: [(&str, &str); 3] =
    [("fifo", "first come, first served"), ("priority", "strict priority"), ("lorafleet", "lorafleet")];
/// What the tables lie between in the page.
const MARKS: (&str, &str) = ("<!-- simulation -->\n", "<!-- end of the simulation -->");

/// How large the simulation is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Days that are simulated.
    #[arg(long, default_value_t = 7.0)]
    days: f64,
    /// Workers of the fleet.
    #[arg(long, default_value_t = 10_000)]
    workers: u64,
    /// What the load is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only print: leave docs as they are.
    #[arg(long)]
    dry: bool,
}

/// Simulates, prints the tables, and writes them and a plot into docs.
///
/// # Errors
/// When the simulation fails, or docs cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    fleet::build()?;
    let mut command = Command::new(binary("lorafleet-scheduler"));
    command.arg("simulate");
    for (name, value) in [
        ("--days", args.days.to_string()),
        ("--workers", args.workers.to_string()),
        ("--seed", args.seed.to_string()),
    ] {
        command.args([name, &value]);
    }
    let figures = last_json(&output(&mut command)?).context("lorafleet-scheduler printed no figures")?;
    let text = tables(&figures)?;
    println!("{text}");
    if !args.dry {
        let picture = root().join("docs/images/scheduling.svg");
        plot::draw(&figures, &POLICIES, &picture)?;
        let page = root().join("docs/scheduling.md");
        let old = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        fs::write(&page, put(&old, &text)?).with_context(|| format!("cannot write {}", page.display()))?;
        eprintln!("written into {} and {}", page.display(), picture.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The page with the text between its marks.
fn put(page: &str, text: &str) -> anyhow::Result<String> {
    let (head, rest) =
        page.split_once(MARKS.0).context("docs/scheduling.md has no place for the simulation")?;
    let Some((_, tail)) = rest.split_once(MARKS.1) else { bail!("docs/scheduling.md lacks {}", MARKS.1) };
    Ok(format!("{head}{}{text}\n{}{tail}", MARKS.0, MARKS.1))
}

/// The figures as Markdown: what each policy comes to, then waits by size and by priority.
fn tables(figures: &Value) -> anyhow::Result<String> {
    let policy = |name: &str| &figures["policies"][name];
    let head = |first: &str| {
        let titles = POLICIES.map(|(_, title)| title).join(" | ");
        format!("| {first} | {titles} |\n| --- | ---: | ---: | ---: |\n")
    };
    let row = |title: &str, cell: &dyn Fn(&Value) -> Option<String>| -> anyhow::Result<String> {
        let cells = POLICIES.map(|(name, _)| cell(policy(name)));
        let cells: Option<Vec<String>> = cells.into_iter().collect();
        Ok(format!(
            "| {title} | {} |\n",
            cells.with_context(|| format!("no figures of {title}"))?.join(" | ")
        ))
    };
    let percent = |name: &'static str| move |p: &Value| Some(format!("{:.2} %", p[name].as_f64()? * 100.0));
    let count = |name: &'static str| move |p: &Value| Some(p[name].as_u64()?.to_string());
    let mut text = format!(
        "{} jobs on {} workers in {} days, seed {}: `cargo xtask simulate --days {} --workers {} --seed {}`.\n\n",
        figures["jobs"],
        figures["workers"],
        figures["days"],
        figures["seed"],
        figures["days"],
        figures["workers"],
        figures["seed"],
    );
    text += &head("");
    text += &row("utilisation", &percent("utilisation"))?;
    text += &row("busy workers while jobs wait", &percent("busy_while_jobs_wait"))?;
    let jain = |name: &'static str| {
        move |p: &Value| Some(p[name].as_f64().map_or("–".to_owned(), |jain| format!("{jain:.3}")))
    };
    text += &row("fairness by weight (Jain)", &jain("fairness_by_weight"))?;
    text += &row("fairness by what was due (Jain)", &jain("fairness_by_due"))?;
    text += &row("preemptions", &count("preemptions"))?;
    text += &row("most of them to one job", &count("preemptions_of_one"))?;
    text += &row("worker-seconds lost to them", &percent("lost"))?;
    text += &row("jobs finished", &count("finished"))?;
    text += &row("jobs waiting at the end", &count("waiting"))?;
    for (first, list) in
        [("wait by workers of the job: mean / p99", "sizes"), ("wait by priority: mean / p99", "priorities")]
    {
        text += "\n";
        text += &head(first);
        let names = policy("lorafleet")[list].as_array().context("no waits")?;
        for (n, name) in names.iter().enumerate() {
            text += &row(name["name"].as_str().context("no name")?, &|p| waits(&p[list][n]))?;
        }
        text += &row("all", &|p| waits(&p["all"]))?;
    }
    Ok(text)
}

fn waits(waits: &Value) -> Option<String> {
    let mean = waits["mean_s"].as_f64()?;
    Some(waits["p99_s"].as_f64().map_or("–".to_owned(), |p99| format!("{} / {}", time(mean), time(p99))))
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    match seconds {
        0.0..100.0 => format!("{seconds:.0} s"),
        100.0..6000.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures() -> Value {
        let waits = json!({"name": "1", "jobs": 2, "mean_s": 5.0, "p99_s": 7200.0});
        let none = json!({"name": "2–8", "jobs": 0, "mean_s": 0.0, "p99_s": null});
        let policy = json!({
            "utilisation": 0.8765, "busy_while_jobs_wait": 0.99, "fairness_by_weight": null, "fairness_by_due": 0.9,
            "preemptions": 3, "preemptions_of_one": 2, "lost": 0.001, "finished": 7, "waiting": 0,
            "sizes": [waits, none], "priorities": [waits], "all": waits, "hours": [[5.0, 0.0], [10.0, 25.0]],
        });
        json!({
            "jobs": 9, "workers": 10, "days": 1.0, "seed": 1,
            "policies": {"fifo": policy, "priority": policy, "lorafleet": policy},
        })
    }

    #[test]
    fn tables_have_a_column_for_each_policy() {
        let text = tables(&figures()).unwrap();
        for line in
            ["| utilisation | 87.65 % | 87.65 % | 87.65 % |", "| 1 | 5 s / 2.0 h |", "| 2–8 | – | – | – |"]
        {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(tables(&json!({})).is_err());
    }

    #[test]
    fn the_page_is_changed_between_its_marks_only() {
        let page = format!("before\n{}old\n{}\nafter\n", MARKS.0, MARKS.1);
        let new = put(&page, "new").unwrap();
        assert_eq!(new, format!("before\n{}new\n{}\nafter\n", MARKS.0, MARKS.1));
        assert_eq!(put(&new, "new").unwrap(), new);
        assert!(put("no marks", "new").is_err());
    }

    #[test]
    fn there_is_a_picture() {
        let file = tempfile::NamedTempFile::new().unwrap();
        plot::draw(&figures(), &POLICIES, file.path()).unwrap();
        assert!(fs::read_to_string(file.path()).unwrap().contains("</svg>"));
    }
}
