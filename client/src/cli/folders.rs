//! The folders of an adapter and its base, for commands that compute on this machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lorafleet::{Cache, ClientError, FieldError, job_name, pb};

use super::{Fleet, follow::checkpoint_of, transfer};

/// The folders of an adapter, given as a folder or as a job, and of its base: as given, as the adapter names it, or the job's.
///
/// # Errors
/// There is no such adapter or job, or the base is not known.
pub(super) async fn of(
    adapter: &str,
    base: Option<&Path>,
    fleet: &Fleet,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let folder = Path::new(adapter);
    if folder.join("adapter_config.json").is_file() {
        Ok((folder.to_owned(), base_of(folder, base)?))
    } else if folder.is_dir() {
        let message = format!("{} is a folder without adapter_config.json: no adapter", folder.display());
        Err(mistake("ADAPTER_DIR", message).into())
    } else {
        fetch(adapter, base, fleet).await
    }
}

/// Fetches adapter and base of a job, once, and returns their folders.
async fn fetch(adapter: &str, base: Option<&Path>, fleet: &Fleet) -> anyhow::Result<(PathBuf, PathBuf)> {
    let name = job_name(adapter)?;
    let (client, cache) = (fleet.connect().await?, Cache::of_user()?);
    let job = client.get_job(&name).await?;
    let checkpoint = checkpoint_of(&client, &name, None).await?;
    if !checkpoint.r#final {
        let state = crate::show::state_name(job.state());
        eprintln!("note: {name} is {state}; this is its adapter after step {}", checkpoint.step);
    }
    let shown = transfer::by_name();
    let adapter = cache.adapter(&client, &checkpoint, &shown).await?;
    let base = match base {
        Some(base) => base.to_owned(),
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
