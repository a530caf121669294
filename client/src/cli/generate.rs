//! `lorafleet generate`: answers a prompt with a job's adapter, or one on this machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use lorafleet::{Cache, ClientError, FieldError, job_name, pb};

use super::{Exit, Fleet, follow::checkpoint_of, transfer};
use crate::up::sibling;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job (its id, or jobs/ID), or the folder of an adapter.
    #[arg(value_name = "JOB|ADAPTER_DIR")]
    adapter: String,
    /// What to answer.
    #[arg(long)]
    prompt: String,
    /// The base's folder; needed for an adapter's folder unless that names one. A job knows its own.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: u32,
    /// 0: always the likeliest token; above, the more random.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON: prompt and answer.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let worker = sibling("lorafleet-worker")?;
    let folder = Path::new(&args.adapter);
    let (adapter, base) = if folder.join("adapter_config.json").is_file() {
        (folder.to_owned(), base_of(folder, args.base.as_deref())?)
    } else if folder.is_dir() {
        let message = format!("{} is a folder without adapter_config.json: no adapter", folder.display());
        return Err(mistake("ADAPTER_DIR", message).into());
    } else {
        fetch(&args, fleet).await?
    };
    let mut command = Command::new(&worker);
    command.arg("generate").arg("--base").arg(base).arg("--adapter").arg(adapter);
    command.args(["--prompt", &args.prompt]);
    command.args(["--max-new-tokens", &args.max_new_tokens.to_string()]);
    command.args(["--temperature", &args.temperature.to_string(), "--top-p", &args.top_p.to_string()]);
    command.args(["--seed", &args.seed.to_string()]);
    if args.json {
        command.arg("--json");
    }
    let status = command.status().with_context(|| format!("cannot start {}", worker.display()))?;
    Ok(if status.success() { Exit::Done } else { Exit::Internal })
}

/// Fetches adapter and base of a job, once, and returns their folders.
async fn fetch(args: &Args, fleet: &Fleet) -> anyhow::Result<(PathBuf, PathBuf)> {
    let name = job_name(&args.adapter)?;
    let (client, cache) = (fleet.connect().await?, Cache::of_user()?);
    let job = client.get_job(&name).await?;
    let checkpoint = checkpoint_of(&client, &name, None).await?;
    if !checkpoint.r#final {
        let state = crate::show::state_name(job.state());
        eprintln!("note: {name} is {state}; this is its adapter after step {}", checkpoint.step);
    }
    let shown = transfer::by_name();
    let adapter = cache.adapter(&client, &checkpoint, &shown).await?;
    let base = match &args.base {
        Some(base) => base.clone(),
        None => cache.base(&client, base_digest(&job)?, &shown).await?,
    };
    Ok((adapter, base))
}

fn base_digest(job: &pb::Job) -> anyhow::Result<&str> {
    let base = job.spec.as_ref().and_then(|spec| spec.base.as_ref());
    base.map(|base| base.sha256.as_str()).with_context(|| format!("{} names no base", job.name))
}

/// The base of an adapter's folder: as given, else the folder that its configuration names.
fn base_of(adapter: &Path, given: Option<&Path>) -> Result<PathBuf, ClientError> {
    if let Some(base) = given {
        return Ok(base.to_owned());
    }
    let path = adapter.join("adapter_config.json");
    let text = std::fs::read(&path).map_err(ClientError::file(&path))?;
    let config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| mistake("ADAPTER_DIR", format!("{}: {error}", path.display())))?;
    let recorded = config["base_model_name_or_path"].as_str().unwrap_or_default();
    for base in [Path::new(recorded).to_owned(), adapter.join(recorded)] {
        if !recorded.is_empty() && base.join("config.json").is_file() {
            return Ok(base);
        }
    }
    let why = match recorded {
        "" => "the adapter names no base".to_owned(),
        recorded => format!("the adapter's base '{recorded}' is no folder here"),
    };
    Err(mistake("--base", format!("{why}: give the base's folder with --base DIR")))
}

fn mistake(field: &str, message: String) -> ClientError {
    ClientError::invalid("the command line is not right:", vec![FieldError::new(field, message)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_base_is_used_where_it_is_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (adapter, base) = (dir.path().join("adapter"), dir.path().join("base"));
        for folder in [&adapter, &base] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(base.join("config.json"), "{}").unwrap();
        let config = serde_json::json!({ "base_model_name_or_path": base });
        std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        assert_eq!(base_of(&adapter, None).unwrap(), base);
        assert_eq!(base_of(&adapter, Some(Path::new("other"))).unwrap(), Path::new("other"));
        std::fs::write(adapter.join("adapter_config.json"), r#"{"base_model_name_or_path": "org/model"}"#)
            .unwrap();
        let error = base_of(&adapter, None).unwrap_err().to_string();
        assert!(error.contains("'org/model' is no folder here"), "{error}");
    }
}
