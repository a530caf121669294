//! What to compute with: a job's adapter or model, or a folder of this machine, and its base.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use lorafleet::{Cache, ClientError, FieldError, Hub, job_name, pb};
use lorafleet_spec::base::{BaseSource, HubId};

use super::{Exit, Fleet, follow::checkpoint_of, transfer};
use crate::up::sibling;

/// The folders that the worker's program is given.
#[derive(Debug)]
pub struct Model {
    /// The base; after full fine-tuning the trained model itself.
    pub base: PathBuf,
    /// The adapter, where there is one.
    pub adapter: Option<PathBuf>,
}

impl Model {
    /// The worker's program that stands beside this one, told what to compute with.
    ///
    /// # Errors
    /// It is not there.
    pub fn worker(&self, subcommand: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(sibling("lorafleet-worker")?);
        command.arg(subcommand).arg("--base").arg(&self.base);
        if let Some(adapter) = &self.adapter {
            command.arg("--adapter").arg(adapter);
        }
        Ok(command)
    }
}

/// Runs the worker's program, which speaks for itself.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command) -> anyhow::Result<Exit> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", Path::new(command.get_program()).display()))?;
    Ok(if status.success() { Exit::Done } else { Exit::Internal })
}

/// Finds what was named: a folder of an adapter or a model, or a job, whose files are fetched once.
///
/// # Errors
/// A folder is neither, a base is not known, or the job's files cannot be fetched.
pub async fn find(named: &str, base: Option<&Path>, fleet: &Fleet) -> anyhow::Result<Model> {
    let folder = Path::new(named);
    if is_adapter(folder) {
        return Ok(Model { base: here(base_of(folder, base)?).await?, adapter: Some(folder.to_owned()) });
    }
    if is_model(folder) {
        return Ok(Model { base: folder.to_owned(), adapter: None });
    }
    if folder.is_dir() {
        let message = format!(
            "{} has neither adapter_config.json nor config.json: no adapter, no model",
            folder.display()
        );
        return Err(mistake("ADAPTER_DIR", message).into());
    }
    fetch(named, base, fleet).await
}

fn is_adapter(folder: &Path) -> bool {
    folder.join("adapter_config.json").is_file()
}

fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

/// Fetches adapter and base of a job, or its model, once.
async fn fetch(job: &str, base: Option<&Path>, fleet: &Fleet) -> anyhow::Result<Model> {
    let name = job_name(job)?;
    let (client, cache) = (fleet.connect().await?, Cache::of_user()?);
    let job = client.get_job(&name).await?;
    let checkpoint = checkpoint_of(&client, &name, None).await?;
    if !checkpoint.r#final {
        let state = crate::show::state_name(job.state());
        eprintln!("note: {name} is {state}; this is what it has after step {}", checkpoint.step);
    }
    let shown = transfer::by_name();
    let folder = cache.adapter(&client, &checkpoint, &shown).await?;
    if !is_adapter(&folder) {
        return Ok(Model { base: folder, adapter: None });
    }
    let base = match base {
        Some(base) => here(base.to_owned()).await?,
        None => cache.base(&client, base_digest(&job)?, &shown).await?,
    };
    Ok(Model { base, adapter: Some(folder) })
}

/// A base's folder: what was given, or, where that is a hub id, what the hub sends.
async fn here(base: PathBuf) -> Result<PathBuf, ClientError> {
    match BaseSource::parse(&base.to_string_lossy(), Path::new("")) {
        BaseSource::Hub(id) => Ok(Hub::from_env()?.fetch(&id, &transfer::by_name()).await?.dir),
        _ => Ok(base),
    }
}

fn base_digest(job: &pb::Job) -> anyhow::Result<&str> {
    let base = job.spec.as_ref().and_then(|spec| spec.base.as_ref());
    base.map(|base| base.sha256.as_str()).with_context(|| format!("{} names no base", job.name))
}

/// The base of an adapter's folder: as given, else the folder or hub id that its configuration names.
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
    if let Some(hub) = HubId::parse(recorded) {
        let hub = config["revision"].as_str().map_or(hub.clone(), |revision| hub.at(revision));
        return Ok(hub.to_string().into());
    }
    let why = match recorded {
        "" => "the adapter names no base".to_owned(),
        recorded => format!("the adapter's base '{recorded}' is no folder here"),
    };
    Err(mistake("--base", format!("{why}: give the base's folder with --base DIR")))
}

/// A mistake on the command line.
pub fn mistake(field: &str, message: impl Into<String>) -> ClientError {
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
        let write = |config: &str| std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
        write(r#"{"base_model_name_or_path": "org/model", "revision": "c0ffee"}"#);
        assert_eq!(
            base_of(&adapter, None).unwrap(),
            Path::new("org/model@c0ffee"),
            "the hub is asked for it"
        );
        write(r#"{"base_model_name_or_path": "/nowhere/model"}"#);
        let error = base_of(&adapter, None).unwrap_err().to_string();
        assert!(error.contains("'/nowhere/model' is no folder here"), "{error}");
    }
}
