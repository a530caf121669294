//! `lorafleet validate FILE`: what the fleet would say of a job file, said here.

use std::path::PathBuf;

use lorafleet::{FieldError, JobFile};
use serde_json::json;

use super::{Exit, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job file. Paths in it are relative to it.
    file: PathBuf,
    /// Print JSON: the job with every default filled in, or the mistakes.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut file = JobFile::read(&args.file)?;
    file.find_base()?;
    let report = file.report();
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    if !report.errors.is_empty() {
        if !args.json {
            return Err(file.mistakes(report.errors).into());
        }
        let error = |error: &FieldError| json!({ "path": error.path, "message": error.message });
        output::json(&json!({ "errors": report.errors.iter().map(error).collect::<Vec<_>>() }))?;
        return Ok(Exit::Invalid);
    }
    if args.json {
        output::json(&report.spec)?;
    } else {
        output::line(&format!("{} is in order", args.file.display()))?;
        if let Some(summary) = &report.summary {
            output::line(&summary.to_string())?;
        }
    }
    Ok(Exit::Done)
}
