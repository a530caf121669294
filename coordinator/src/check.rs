//! Whether a job can be done with what is in the store: its data sets and base, the base's shape, the adapter's targets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    BaseShape, FieldError, Job,
    base::{Head, TensorFile, header_len},
    fill_defaults,
    job::{Action, Start, Task},
    validate,
};
use lorafleet_store::{Digest, FileName, Store, StoreError, Sums, layout};

use crate::labels;

/// Largest config.json that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Base shapes that are remembered: they are named by their content, so they never change.
const REMEMBERED: usize = 32;

/// What keeps a job from being stored.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Fields that are wrong, each by its path.
    #[error("the job is not valid: {}", list(.0))]
    Fields(Vec<FieldError>),
    /// Something that was never uploaded.
    #[error("{field}: {what} was never uploaded")]
    NotUploaded {
        /// Path of the field that names it.
        field: &'static str,
        /// What is missing.
        what: String,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks jobs against a store.
#[derive(Debug, Clone)]
pub struct Checker {
    store: Store,
    shapes: Arc<Mutex<Shapes>>,
}

/// Shapes of bases, as they are for a task.
type Shapes = HashMap<(Digest, Head), Arc<BaseShape>>;

impl Checker {
    /// A checker that remembers nothing yet.
    pub fn new(store: Store) -> Self {
        Self { store, shapes: Arc::default() }
    }

    /// Fills in the defaults and checks everything. All errors of the fields come at once, then those of content.
    pub async fn check(&self, spec: &mut pb::JobSpec) -> Result<(), CheckError> {
        fill_defaults(spec);
        let mut job = Job::try_from(&*spec).map_err(CheckError::Fields)?;
        let missing = job.missing_digests();
        if !missing.is_empty() {
            return Err(CheckError::Fields(missing));
        }
        for (field, files) in [("data.train", &job.data.train), ("data.eval", &job.data.eval)] {
            for file in files {
                self.find_dataset(field, file.sha256.as_deref()).await?;
            }
        }
        if let Some(Start::Folder(start)) = &job.adapter.start {
            self.find_adapter("adapter.start", start.sha256.as_deref()).await?;
        }
        // An adapter that is there brings its labels along.
        let trains = job.action == Action::Train;
        if trains && job.task == Task::Classification && job.data.labels.is_empty() {
            let labels = labels::of_training(&self.store, &job).await?;
            spec.data.get_or_insert_default().labels.clone_from(&labels);
            job.data.labels = labels;
        }
        self.on_base(&job).await
    }

    /// Checks a job that names the same content as `first`, which was checked: the store is not asked again.
    pub async fn check_like(&self, spec: &mut pb::JobSpec, first: &pb::JobSpec) -> Result<(), CheckError> {
        fill_defaults(spec);
        if let (Some(data), Some(first)) = (&mut spec.data, &first.data)
            && data.labels.is_empty()
        {
            data.labels.clone_from(&first.labels);
        }
        let job = Job::try_from(&*spec).map_err(CheckError::Fields)?;
        self.on_base(&job).await
    }

    /// Checks what only the base can tell.
    async fn on_base(&self, job: &Job) -> Result<(), CheckError> {
        let base = digest("base", job.base.sha256.as_deref())?;
        let shape = self.base_shape(base, validate::head(job.task, job.data.labels.len().max(1))).await?;
        validate::job_on_base(job, &shape).map(drop).map_err(CheckError::Fields)
    }

    async fn find_dataset(&self, field: &'static str, sha256: Option<&str>) -> Result<(), CheckError> {
        let digest = digest(field, sha256)?;
        match self.store.size(&layout::dataset(&digest)).await? {
            Some(_) => Ok(()),
            None => Err(CheckError::NotUploaded { field, what: format!("the data set {digest}") }),
        }
    }

    /// An adapter to start from is stored as a base is: a folder by the digest of its SHA256SUMS.
    async fn find_adapter(&self, field: &'static str, sha256: Option<&str>) -> Result<(), CheckError> {
        let digest = digest(field, sha256)?;
        match lorafleet_store::base_is_whole(&self.store, &digest).await? {
            true => Ok(()),
            false => Err(CheckError::NotUploaded { field, what: format!("the adapter {digest}") }),
        }
    }

    async fn base_shape(&self, base: Digest, head: Head) -> Result<Arc<BaseShape>, CheckError> {
        if let Some(shape) = self.remembered().get(&(base, head)) {
            return Ok(Arc::clone(shape));
        }
        let sums = match lorafleet_store::read_sums(&self.store, &base).await {
            Err(error) if error.is_not_found() => {
                return Err(CheckError::NotUploaded { field: "base", what: format!("the base {base}") });
            }
            other => other?,
        };
        let shape = Arc::new(self.read_shape(&base, &sums, head).await?);
        let mut shapes = self.remembered();
        if shapes.len() >= REMEMBERED {
            shapes.clear();
        }
        shapes.insert((base, head), Arc::clone(&shape));
        Ok(shape)
    }

    async fn read_shape(&self, base: &Digest, sums: &Sums, head: Head) -> Result<BaseShape, CheckError> {
        let mut config = None;
        let mut files = Vec::new();
        for name in sums.files().keys() {
            if name.as_str() == "config.json" {
                let bytes = self.store.get(&layout::base_file(base, name), MAX_CONFIG).await?;
                config = Some(String::from_utf8_lossy(&bytes).into_owned());
            } else if name.as_str().ends_with(".safetensors") {
                files.push(self.read_header(base, name).await?);
            }
        }
        let config = config.ok_or_else(|| wrong_base("config.json is missing"))?;
        BaseShape::parse(&config, &files, head).map_err(|error| wrong_base(error.to_string()))
    }

    /// The header of one safetensors file; its tensors are not read.
    async fn read_header(&self, base: &Digest, name: &FileName) -> Result<TensorFile, CheckError> {
        let mut reader = self.store.read(&layout::base_file(base, name)).await?;
        let file_bytes = reader.size();
        let mut start: Vec<u8> = Vec::new();
        let mut wanted = 8_u64;
        loop {
            if let Some(first) = start.first_chunk::<8>() {
                let header =
                    header_len(*first, file_bytes).map_err(|why| wrong_base(format!("{name} {why}")))?;
                wanted = header + 8;
            }
            if start.len() as u64 >= wanted && start.len() >= 8 {
                break;
            }
            match reader.next().await? {
                Some(bytes) => start.extend_from_slice(&bytes),
                None => {
                    return Err(wrong_base(format!("{name} is truncated: it has {file_bytes} bytes")));
                }
            }
        }
        let end = usize::try_from(wanted).unwrap_or(usize::MAX).min(start.len());
        let header = String::from_utf8_lossy(&start[8..end]).into_owned();
        Ok(TensorFile { name: name.to_string(), header, file_bytes })
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Shapes> {
        // No code panics while it holds the lock.
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wrong_base(message: impl Into<String>) -> CheckError {
    CheckError::Fields(vec![FieldError::new("base", message)])
}

pub(crate) fn digest(field: &'static str, sha256: Option<&str>) -> Result<Digest, CheckError> {
    let text = sha256.unwrap_or_default();
    text.parse().map_err(|_| {
        let message = format!("`{text}` is not a sha256: 64 lower-case hex digits");
        CheckError::Fields(vec![FieldError::new(format!("{field}.sha256"), message)])
    })
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
