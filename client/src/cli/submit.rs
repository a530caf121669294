//! `lorafleet submit FILE`: checks a job file here, sends what the fleet lacks, and stores the job.

use std::path::PathBuf;

use anyhow::Context as _;
use lorafleet::{Client, ClientError, FieldError, JobFile, pb, short_id};
use lorafleet_spec::{
    job::submission::{self, Links},
    validate::Report,
};
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
    let mut files = JobFile::read_all(&args.file)?;
    let file = match files.pop() {
        Some(only) if files.is_empty() => only,
        last => {
            files.extend(last);
            return several(args, files, fleet).await;
        }
    };
    let (file, report) = checked_file(file).await?;
    let mut spec = report.spec;
    let client = fleet.connect().await?;
    send(&client, &mut spec, &file).await?;
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

/// Stores the jobs of a file of several documents at once, when nothing is wrong with any of them.
async fn several(args: Args, files: Vec<JobFile>, fleet: &Fleet) -> anyhow::Result<Exit> {
    if args.watch {
        let message =
            format!("follows one job, and the file has {}; submit them, then watch one", files.len());
        let mistake = FieldError::new("--watch", message);
        return Err(ClientError::invalid("the command line is not right:", vec![mistake]).into());
    }
    let mut checked = Vec::with_capacity(files.len());
    for file in files {
        let (file, report) = checked_file(file).await?;
        checked.push((file, report.spec));
    }
    let jobs: Vec<Links<'_>> = checked.iter().map(|(_, spec)| Links::of(spec)).collect();
    if let Err(wrong) = submission::order(&jobs) {
        let file = &checked[wrong[0].job].0;
        return Err(file.mistakes(wrong.into_iter().map(|wrong| wrong.error).collect()).into());
    }
    let client = fleet.connect().await?;
    for (file, spec) in &mut checked {
        send(&client, spec, file).await?;
    }
    let specs: Vec<pb::JobSpec> = checked.into_iter().map(|(_, spec)| spec).collect();
    let request_id = args.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let jobs = client.create_jobs(&specs, &request_id).await?;
    if args.follow.json {
        output::json(&pb::CreateJobsResponse { jobs })?;
    } else {
        for job in &jobs {
            let name = job.spec.as_ref().map_or("", |spec| spec.display_name.as_str());
            output::line(&format!("{}  {name}", job.name))?;
        }
    }
    Ok(Exit::Done)
}

/// Sends what a job names and the fleet lacks.
async fn send(client: &Client, spec: &mut pb::JobSpec, file: &JobFile) -> Result<(), ClientError> {
    for sent in client.upload_sources(spec, file, &transfer::by_name()).await? {
        let what = if sent.already_present { "is in the fleet already" } else { "is sent" };
        eprintln!("{}: {} {what} ({})", sent.field, sent.source, bytes(sent.size));
    }
    Ok(())
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
