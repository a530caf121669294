//! What `watch` and `submit --watch` share: a job shown until it ends, then what came of it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lorafleet::{Client, ClientError, Update, job_name, pb};

use super::{Exit, output, transfer};
use crate::show::{Adapter, Progress, summary};

/// Options of every command that follows a job.
#[derive(Debug, clap::Args)]
pub struct FollowArgs {
    /// When the job has succeeded, fetch its adapter into this folder.
    #[arg(long, value_name = "DIR")]
    pub download: Option<PathBuf>,
    /// Print JSON: one update a line, the last one the job as it ended.
    #[arg(long)]
    pub json: bool,
}

/// Follows a job (`jobs/{id}`) to its end, and tells how it ended.
pub async fn follow(client: &Client, name: &str, args: &FollowArgs) -> anyhow::Result<Exit> {
    let job = if args.json { print_updates(client, name).await? } else { draw(client, name).await? };
    let folder = args.download.as_deref().filter(|_| job.state() == pb::JobState::Succeeded);
    if let Some(folder) = folder {
        fetch_result(client, &job, folder).await?;
    }
    if !args.json {
        output::line(&summary(&job, &folder.map_or(Adapter::Stored, Adapter::Downloaded)))?;
    }
    Ok(Exit::of_state(job.state()))
}

async fn draw(client: &Client, name: &str) -> Result<pb::Job, ClientError> {
    let mut progress = Progress::new();
    let mut watch = client.watch(name, 0, 0);
    let mut last = None;
    while let Some(update) = watch.next().await? {
        match update {
            Update::Job(job) => {
                progress.job(&job);
                last = Some(job);
            }
            Update::Event(event) => progress.event(&event),
            Update::Point(point) => progress.point(&point),
        }
    }
    progress.finish();
    last.ok_or_else(|| ClientError::Protocol(format!("the stream of {name} ended without the job")))
}

async fn print_updates(client: &Client, name: &str) -> anyhow::Result<pb::Job> {
    let mut watch = client.watch(name, 0, 0);
    let mut last = None;
    while let Some(update) = watch.next().await? {
        if let Update::Job(job) = &update {
            last = Some(job.clone());
        }
        output::json_line(&pb::WatchJobResponse { update: Some(update) })?;
    }
    last.with_context(|| format!("the stream of {name} ended without the job"))
}

/// Fetches the adapter of a job that succeeded.
async fn fetch_result(client: &Client, job: &pb::Job, folder: &Path) -> Result<(), ClientError> {
    let checkpoint = checkpoint_of(client, &job_name(&job.name)?, None).await?;
    client.download_checkpoint(&checkpoint, folder, false, &transfer::by_name()).await.map(drop)
}

/// The checkpoint of a job (`jobs/{id}`) that is asked for by its whole name; else its result; else its latest.
pub async fn checkpoint_of(
    client: &Client,
    job: &str,
    wanted: Option<&str>,
) -> Result<pb::Checkpoint, ClientError> {
    let checkpoints = client.list_checkpoints(job).await?;
    let found = match wanted {
        Some(name) => checkpoints.iter().find(|checkpoint| checkpoint.name == name),
        None => {
            let latest = checkpoints.iter().max_by_key(|checkpoint| checkpoint.step);
            checkpoints.iter().find(|checkpoint| checkpoint.r#final).or(latest)
        }
    };
    found.cloned().ok_or_else(|| {
        ClientError::NotFound(match wanted {
            Some(name) => format!("{name} is not in the store; `lorafleet checkpoints {job}` lists what is"),
            None => format!("{job} has no checkpoint yet; `lorafleet watch {job}` follows it"),
        })
    })
}
