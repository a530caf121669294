//! `lorafleet sweep submit FILE`: checks a sweep file here, sends what the fleet lacks once, and stores all of its jobs.

use std::path::PathBuf;

use lorafleet::{FieldError, SweepFile, short_id};
use lorafleet_spec::{
    Job,
    sweep::{Child, Mistakes},
    validate::{self, Report},
};
use serde_json::json;
use uuid::Uuid;

use super::{super::submit::checked_file, Exit, Fleet, output};
use crate::{cli::transfer, show::bytes};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sweep file: a job file with a section `sweep`. Paths in it are relative to it.
    file: PathBuf,
    /// Say what the jobs would be, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Follow the sweep until all of its jobs have ended.
    #[arg(long, short, conflicts_with = "dry_run")]
    watch: bool,
    /// A UUID of your choice: submitted again with the same one, the same sweep is returned. [default: a new one]
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let mut file = SweepFile::read(&args.file)?;
    let (job, report) = checked_file(file.job.clone()).await?;
    file.job = job;
    let errors = on_base(&file, &report);
    if !errors.is_empty() {
        return Err(file.job.mistakes(errors).into());
    }
    if args.dry_run && args.json {
        let child = |child: &Child| json!({ "index": child.index, "parameters": &child.settings, "spec": &child.spec });
        output::json(&json!({ "children": file.expanded.children.iter().map(child).collect::<Vec<_>>() }))?;
        return Ok(Exit::Done);
    }
    if args.dry_run {
        for child in &file.expanded.children {
            output::line(&format!("{}  {}", child.spec.display_name, child.describe()))?;
        }
        return Ok(Exit::Done);
    }
    // With patterns in it replaced by the files that they match.
    let mut spec = file.spec;
    spec.data = report.spec.data;
    let client = fleet.connect().await?;
    for sent in client.upload_sources(&mut spec, &file.job, &transfer::by_name()).await? {
        let what = if sent.already_present { "is in the fleet already" } else { "is sent" };
        eprintln!("{}: {} {what} ({})", sent.field, sent.source, bytes(sent.size));
    }
    let request_id = args.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let sweep = client.create_sweep(&spec, &file.sweep, &request_id).await?;
    if args.watch {
        if !args.json {
            eprintln!("{} of {} jobs is submitted; Ctrl-C only stops watching", sweep.name, sweep.children);
        }
        return super::show::follow(&client, &sweep.name, args.json).await;
    }
    if args.json {
        output::json(&sweep)?;
    } else {
        output::line(&sweep.name)?;
        eprintln!(
            "{} jobs; follow them with: lorafleet sweep watch {}",
            sweep.children,
            short_id(&sweep.name)
        );
    }
    Ok(Exit::Done)
}

/// What of the children does not fit the base, where it is on this machine.
fn on_base(file: &SweepFile, report: &Report) -> Vec<FieldError> {
    let Some(summary) = &report.summary else { return Vec::new() };
    let mut mistakes = Mistakes::default();
    for child in &file.expanded.children {
        // A child of a classification job is whole only with the labels of its data.
        let mut spec = child.spec.clone();
        if let (Some(data), Some(common)) = (&mut spec.data, &report.spec.data) {
            data.labels.clone_from(&common.labels);
        }
        let checked = Job::try_from(&spec).and_then(|job| validate::job_on_base(&job, &summary.shape));
        if let Err(errors) = checked {
            mistakes.of_child(errors, child.index, &child.settings);
        }
    }
    mistakes.none().err().unwrap_or_default()
}
