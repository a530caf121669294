//! A job file on this machine with the base and data that it names, checked here and then sent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lorafleet_spec::{
    FieldError,
    base::{BaseSource, base_files},
    data::{is_elsewhere, local_path},
    digest,
    job::submission,
    validate::{self, Report},
};

use crate::{
    artifacts::{ProgressFor, base_file},
    cache::Cache,
    client::Client,
    error::ClientError,
    files::{LocalFile, SUMS},
    hub::Hub,
    pb, remote_base,
};

/// What of a PEFT adapter's folder is a start.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A job file that was read.
#[derive(Debug, Clone)]
pub struct JobFile {
    path: PathBuf,
    text: String,
    base: Option<FetchedBase>,
    /// Which of several documents of the file it is, from 1.
    document: Option<usize>,
}

/// A base that the job file names by hub id or URL, on this machine.
#[derive(Debug, Clone)]
struct FetchedBase {
    dir: PathBuf,
    /// What the stored job says of it: the hub id at a commit, or the URL.
    source: String,
}

/// What one field's upload came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The field of the job file: `base`, `data.train`.
    pub field: &'static str,
    /// What the job file says there.
    pub source: String,
    /// Bytes of it.
    pub size: u64,
    /// The fleet had it: nothing was sent.
    pub already_present: bool,
}

impl JobFile {
    /// A job file with this text, whose relative paths begin at the folder of `path`.
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text, base: None, document: None }
    }

    /// Reads a job file. Blocks.
    ///
    /// # Errors
    /// `File` when it cannot be read.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let text = fs::read_to_string(path).map_err(ClientError::file(path))?;
        Ok(Self::new(path, text))
    }

    /// Reads a file of one or several jobs: a YAML document each. Blocks.
    ///
    /// # Errors
    /// `File` when it cannot be read.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, ClientError> {
        let text = fs::read_to_string(path).map_err(ClientError::file(path))?;
        let documents = submission::documents(&text);
        let several = documents.len() > 1;
        let file = |(i, text)| Self { document: several.then_some(i), ..Self::new(path, text) };
        Ok((1..).zip(documents).map(file).collect())
    }

    /// Brings the base here, where the job file names it by hub id or by a store's URL; a branch or tag of the hub becomes
    /// the commit that it is now. Nothing is fetched of a base that the job file knows by its digest.
    ///
    /// # Errors
    /// `Hub`, each saying what to do; `Invalid` for a URL that cannot be read; `File`.
    pub async fn fetch_base(&mut self, progress: ProgressFor<'_>) -> Result<(), ClientError> {
        self.base = match self.base_source() {
            Some(BaseSource::Hub(id)) => {
                let fetched = Hub::from_env()?.fetch(&id, progress).await?;
                Some(FetchedBase { dir: fetched.dir, source: fetched.id.to_string() })
            }
            Some(BaseSource::Url(url)) => {
                let dir = remote_base::fetch(&url, Cache::of_user()?.root(), progress).await?;
                Some(FetchedBase { dir, source: url })
            }
            Some(BaseSource::Folder(_)) | None => None,
        };
        Ok(())
    }

    /// Whether the base must be brought here before all of the job can be checked.
    pub fn base_is_elsewhere(&self) -> bool {
        self.base.is_none() && matches!(self.base_source(), Some(BaseSource::Hub(_) | BaseSource::Url(_)))
    }

    /// Finds a base of the hub in the cache, without the network; where it is not there, it stays unchecked.
    ///
    /// # Errors
    /// `Hub` for settings that cannot be used.
    pub fn find_base(&mut self) -> Result<(), ClientError> {
        if let Some(BaseSource::Hub(id)) = self.base_source() {
            let cached = Hub::from_env()?.cached(&id);
            self.base = cached.map(|base| FetchedBase { dir: base.dir, source: base.id.to_string() });
        }
        Ok(())
    }

    fn base_source(&self) -> Option<BaseSource> {
        let base = validate::base_of(&self.text).filter(|base| base.sha256.is_empty())?;
        Some(BaseSource::parse(&base.source, self.folder()))
    }

    /// Everything that is wrong with it, its base and its data, or what it will do. Blocks: the data is read whole.
    pub fn report(&self) -> Report {
        validate::job_file_on(&self.text, self.folder(), self.base.as_ref().map(|base| base.dir.as_path()))
    }

    /// What [`JobFile::report`] found wrong, as an error.
    pub fn mistakes(&self, errors: Vec<FieldError>) -> ClientError {
        let count =
            if errors.len() == 1 { "a mistake".to_owned() } else { format!("{} mistakes", errors.len()) };
        let which = self.document.map_or(String::new(), |n| format!(" (document {n})"));
        ClientError::invalid(format!("{}{which} has {count}:", self.path.display()), errors)
    }

    /// Where its relative paths begin.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

impl Client {
    /// Sends what a checked job file names and the fleet lacks, and sets the digests in its spec; a data set at a store's
    /// URL becomes the files that are found there.
    ///
    /// # Errors
    /// `Invalid` for a base that is not on this machine and has no digest, or for a source that has another digest than
    /// the job file says; those of [`Client::upload_data`] and [`Client::import_data`].
    pub async fn upload_sources(
        &self,
        spec: &mut pb::JobSpec,
        file: &JobFile,
        progress: ProgressFor<'_>,
    ) -> Result<Vec<Sent>, ClientError> {
        let (mut sent, folder) = (Vec::new(), file.folder());
        if let Some(base) = &mut spec.base {
            let dir = match &file.base {
                Some(fetched) => {
                    base.source.clone_from(&fetched.source);
                    Some(fetched.dir.clone())
                }
                None => local_base(&base.source, &base.sha256, folder)?,
            };
            if let Some(dir) = dir {
                let names = base_files(&dir).map_err(|error| invalid("base", error.to_string()))?;
                let (sha256, result) =
                    self.upload_folder("base", &base.source, &dir, names, progress).await?;
                base.sha256 = same("base", &base.sha256, sha256)?;
                sent.push(result);
            }
        }
        let start = spec.adapter.as_mut().and_then(|adapter| adapter.start.as_mut());
        if let Some(start) = start
            && start.job.is_empty()
            && let Some(dir) = local("adapter.start", &start.source, &start.sha256, folder)?
        {
            let names = adapter_files(&dir)?;
            let (sha256, result) =
                self.upload_folder("adapter.start", &start.source, &dir, names, progress).await?;
            start.sha256 = same("adapter.start", &start.sha256, sha256)?;
            sent.push(result);
        }
        let task = spec.task;
        let data = spec.data.get_or_insert_default();
        let hint = pb::DataHint { task, columns: data.columns.clone(), ..Default::default() };
        for (field, files) in [("data.train", &mut data.train), ("data.eval", &mut data.eval)] {
            let mut pinned = Vec::with_capacity(files.len());
            for file in std::mem::take(files) {
                let (files, result) = self.send_data(field, file, folder, &hint, progress).await?;
                pinned.extend(files);
                sent.extend(result);
            }
            *files = pinned;
        }
        Ok(sent)
    }

    /// Sends one file of a data set, or has the coordinator fetch what a URL names; gives the files by their digests.
    async fn send_data(
        &self,
        field: &'static str,
        mut data: pb::DataRef,
        folder: &Path,
        hint: &pb::DataHint,
        progress: ProgressFor<'_>,
    ) -> Result<(Vec<pb::DataRef>, Option<Sent>), ClientError> {
        if is_elsewhere(&data.source) && !digest::is_sha256(&data.sha256) {
            let imported = self.import_data(&data.source, hint.clone()).await?;
            let sent = Sent { field, source: data.source, size: imported.size_bytes, already_present: false };
            return Ok((imported.files, Some(sent)));
        }
        let Some(path) = local(field, &data.source, &data.sha256, folder)? else {
            return Ok((vec![data], None));
        };
        let file = hashed(path).await?;
        data.sha256 = same(field, &data.sha256, file.sha256.clone())?;
        let hint = pb::DataHint { name: data.source.clone(), ..hint.clone() };
        let uploaded = self.upload_data(&file, hint, &progress(&data.source, file.size)).await?;
        let (source, already_present) = (data.source.clone(), uploaded.already_present);
        Ok((vec![data], Some(Sent { field, source, size: file.size, already_present })))
    }

    /// Sends a folder's files, the list of them last: it makes the folder whole. Returns its digest.
    async fn upload_folder(
        &self,
        field: &'static str,
        source: &str,
        dir: &Path,
        names: Vec<String>,
        progress: ProgressFor<'_>,
    ) -> Result<(String, Sent), ClientError> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let file = hashed(dir.join(&name)).await?;
            files.push((name, file));
        }
        let digests: Vec<_> = files.iter().map(|(name, file)| (name.clone(), file.sha256.clone())).collect();
        let (sums, sha256) = (digest::sums_text(&digests), digest::base_digest(&digests));
        let size = files.iter().map(|(_, file)| file.size).sum();
        let sums_place = base_file(&sha256, SUMS, &sha256);
        let already_present = self.stat(&sums_place).await?.is_some();
        if !already_present {
            for (name, file) in &files {
                let place = base_file(&sha256, name, &file.sha256);
                self.upload(&place, file, &progress(&format!("{source}/{name}"), file.size)).await?;
            }
            self.upload_bytes(&sums_place, sums.into_bytes()).await?;
        }
        Ok((sha256, Sent { field, source: source.to_owned(), size, already_present }))
    }
}

/// The local path of a base that is a folder; none when it is known by its digest.
fn local_base(source: &str, sha256: &str, folder: &Path) -> Result<Option<PathBuf>, ClientError> {
    match BaseSource::parse(source, folder) {
        BaseSource::Folder(dir) if !source.is_empty() => Ok(Some(dir)),
        _ if digest::is_sha256(sha256) => Ok(None),
        _ => Err(invalid("base", format!("'{source}' was not fetched: call JobFile::fetch_base first"))),
    }
}

/// Names of the files of an adapter to start from.
fn adapter_files(dir: &Path) -> Result<Vec<String>, ClientError> {
    if let Some(missing) = ADAPTER_FILES.iter().find(|name| !dir.join(name).is_file()) {
        let hint = match dir.join("adapter_model.bin").is_file() {
            true => "; adapter_model.bin is pickled, which is not read: load it in PEFT and save it again",
            false => "",
        };
        return Err(invalid("adapter.start", format!("{} has no {missing}{hint}", dir.display())));
    }
    Ok(ADAPTER_FILES.iter().map(|name| (*name).to_owned()).collect())
}

/// The local path of a source; none when it lies elsewhere and is known by its digest.
fn local(field: &str, source: &str, sha256: &str, folder: &Path) -> Result<Option<PathBuf>, ClientError> {
    if !is_elsewhere(source) && !source.is_empty() {
        return Ok(Some(folder.join(local_path(source))));
    }
    if digest::is_sha256(sha256) {
        return Ok(None);
    }
    Err(invalid(
        field,
        format!("'{source}' is not on this machine: give a local path, or the sha256 of what the fleet has"),
    ))
}

/// The digest that was found, if the job file does not say another.
fn same(field: &str, wanted: &str, found: String) -> Result<String, ClientError> {
    if wanted.is_empty() || wanted == found {
        return Ok(found);
    }
    Err(invalid(field, format!("has the sha256 {found}, but the job file says {wanted}")))
}

async fn hashed(path: PathBuf) -> Result<LocalFile, ClientError> {
    let name = path.clone();
    let hashing = tokio::task::spawn_blocking(move || LocalFile::read(&path));
    hashing.await.unwrap_or_else(|error| Err(ClientError::file(name)(std::io::Error::other(error))))
}

fn invalid(field: &str, message: String) -> ClientError {
    ClientError::invalid("the job cannot be sent:", vec![FieldError::new(field, message)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_job_file() {
        let path = local("base", "./base", "", Path::new("examples")).unwrap().unwrap();
        assert_eq!(path, Path::new("examples/./base"));
        let path = local("base", "/models/x", "", Path::new("examples")).unwrap().unwrap();
        assert_eq!(path, Path::new("/models/x"));
    }

    #[test]
    fn what_lies_elsewhere_needs_a_digest() {
        let error = local("base", "s3://bucket/base", "", Path::new("")).unwrap_err().to_string();
        assert!(error.contains("base: 's3://bucket/base' is not on this machine"), "{error}");
        assert_eq!(local("base", "s3://bucket/base", &"a".repeat(64), Path::new("")).unwrap(), None);
    }

    #[test]
    fn a_digest_in_the_job_file_binds() {
        assert_eq!(same("base", "", "found".into()).unwrap(), "found");
        assert!(same("base", "wanted", "found".into()).is_err());
    }
}
