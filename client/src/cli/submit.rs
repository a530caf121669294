//! `lorafleet submit FILE`: checks a job file here, sends what the fleet lacks, and stores the job.

use std::path::PathBuf;

use anyhow::Context as _;
use lorafleet::{ClientError, FieldError, JobFile, short_id};
use lorafleet_spec::validate::Report;
use uuid::Uuid;

use super::{
    Exit, Fleet,
    follow::{FollowArgs, follow},
    output, transfer,
};
use crate::show::bytes;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job file. Paths in it are relative to it.
    file: PathBuf,
    /// Follow the job until it ends.
    #[arg(long, short)]
    watch: bool,
    /// A UUID of your choice: submitted again with the same one, the same job is returned. [default: a new one]
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
    #[command(flatten)]
    follow: FollowArgs,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    if args.follow.download.is_some() && !args.watch {
        let mistake =
            FieldError::new("--download", "needs --watch: there is no adapter before the job has ended");
        return Err(ClientError::invalid("the command line is not right:", vec![mistake]).into());
    }
    let (file, report) = checked_file(JobFile::read(&args.file)?).await?;
    let mut spec = report.spec;
    let client = fleet.connect().await?;
    for sent in client.upload_sources(&mut spec, &file, &transfer::by_name()).await? {
        let what = if sent.already_present { "is in the fleet already" } else { "is sent" };
        eprintln!("{}: {} {what} ({})", sent.field, sent.source, bytes(sent.size));
    }
    let request_id = args.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let job = client.create_job(&spec, &request_id).await?;
    if args.watch {
        if !args.follow.json {
            let id = short_id(&job.name);
            eprintln!(
                "{} is submitted; `lorafleet cancel {id}` ends it, Ctrl-C only stops watching",
                job.name
            );
        }
        return follow(&client, &job.name, &args.follow).await;
    }
    if args.follow.json {
        output::json(&job)?;
    } else {
        output::line(&job.name)?;
        eprintln!("follow it with: lorafleet watch {}", short_id(&job.name));
    }
    Ok(Exit::Done)
}

/// Checks a job file and everything that it names; all mistakes at once.
pub(super) async fn checked_file(mut file: JobFile) -> anyhow::Result<(JobFile, Report)> {
    if file.base_is_elsewhere() {
        // A misspelt field is told before gigabytes are fetched.
        let errors = file.report().errors;
        if !errors.is_empty() {
            return Err(file.mistakes(errors).into());
        }
        file.fetch_base(&transfer::by_name()).await?;
    }
    let check = tokio::task::spawn_blocking(move || {
        let report = file.report();
        match report.errors.is_empty() {
            true => {
                // What is learned, what is cut off and what is left out, before it is trained on.
                let data = report.summary.as_ref().map(|summary| summary.data());
                eprint!("{}", data.unwrap_or_default());
                Ok((file, report))
            }
            false => Err(file.mistakes(report.errors)),
        }
    });
    Ok(check.await.context("the job file could not be checked")??)
}
