//! `lorafleet validate FILE`: what the fleet would say of a job file, and of all of its documents, said here.

use std::path::PathBuf;

use lorafleet::{FieldError, JobFile};
use lorafleet_spec::job::submission::{self, Links};
use serde_json::json;

use super::{Exit, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job file. Paths in it are relative to it.
    file: PathBuf,
    /// Print JSON: the job with every default filled in (a list of several), or the mistakes.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut files = JobFile::read_all(&args.file)?;
    let several = files.len() > 1;
    let mut reports = Vec::with_capacity(files.len());
    for file in &mut files {
        file.find_base()?;
        let report = file.report();
        report.notes.iter().for_each(|note| eprintln!("note: {note}"));
        if !report.errors.is_empty() {
            return refused(args, file, report.errors);
        }
        reports.push(report);
    }
    let links: Vec<Links<'_>> = reports.iter().map(|report| Links::of(&report.spec)).collect();
    if let Err(wrong) = submission::order(&links) {
        let errors = wrong.iter().map(|wrong| wrong.error.clone()).collect();
        return refused(args, &files[wrong[0].job], errors);
    }
    if args.json {
        match reports.as_slice() {
            [report] => output::json(&report.spec)?,
            reports => output::json(&reports.iter().map(|report| &report.spec).collect::<Vec<_>>())?,
        }
        return Ok(Exit::Done);
    }
    output::line(&format!("{} is in order", args.file.display()))?;
    for report in &reports {
        if several {
            output::line(&format!("\n{}", report.spec.display_name))?;
        }
        if let Some(summary) = &report.summary {
            output::line(&summary.to_string())?;
        }
    }
    Ok(Exit::Done)
}

fn refused(args: &Args, file: &JobFile, errors: Vec<FieldError>) -> anyhow::Result<Exit> {
    if !args.json {
        return Err(file.mistakes(errors).into());
    }
    let error = |error: &FieldError| json!({ "path": error.path, "message": error.message });
    output::json(&json!({ "errors": errors.iter().map(error).collect::<Vec<_>>() }))?;
    Ok(Exit::Invalid)
}
