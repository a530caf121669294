//! Everything that can be said of a job file before it is sent: what the fleet would say, on a laptop.

mod data_sets;
mod show;

use std::path::{Path, PathBuf};

use lorafleet_proto::v1 as pb;

use crate::{
    base::{BaseError, BaseShape, BaseSource, Head},
    data::{self, Tokenizer},
    job::{self, Action, FieldError, Job, Task},
    plan::Plan,
    targets::{self, Target},
};

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Everything that is wrong; empty when the job can be sent.
    pub errors: Vec<FieldError>,
    /// What could not be looked at from here, and why.
    pub notes: Vec<String>,
    /// The job with every default filled in, as far as it could be read.
    pub spec: pb::JobSpec,
    /// What the job is; there when nothing is wrong and all could be looked at.
    pub summary: Option<Summary>,
}

/// A valid job in figures.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The base's shape.
    pub shape: BaseShape,
    /// The adapted layers.
    pub targets: Vec<Target>,
    /// How the training data was read.
    pub train: data::Summary,
    /// How the evaluation data was read.
    pub eval: Option<data::Summary>,
    /// What the job costs.
    pub plan: Plan,
}

/// Checks a job file with its base and data: every error at once, each with its field.
///
/// Relative paths in it are taken from `dir`, the file's own folder.
pub fn job_file(text: &str, dir: &Path) -> Report {
    job_file_on(text, dir, None)
}

/// What a job file says of its base, as far as it can be read.
pub fn base_of(text: &str) -> Option<pb::BaseRef> {
    job::read_lenient(text).0.base
}

/// The same as [`job_file`] where the base was already brought to a folder.
pub fn job_file_on(text: &str, dir: &Path, base: Option<&Path>) -> Report {
    let (mut spec, parts, errors) = job::read_lenient(text);
    let mut checker = Checker { dir, errors, notes: Vec::new() };
    let base_dir = base.map(Path::to_owned).or_else(|| checker.base(spec.base.as_ref()));
    let told = checker.errors.len();
    let tokenizer = base_dir.as_deref().and_then(|dir| checker.tokenizer(dir));
    let task =
        if spec.task == pb::Task::Classification as i32 { Task::Classification } else { Task::CausalLm };
    // Positions do not depend on the head, whose size only the data's labels tell. Errors are told below.
    let positions = base_dir.as_deref().and_then(|dir| BaseShape::read(dir, head(task, 2)).ok());
    let positions = positions.map_or(usize::MAX, |shape| shape.max_positions);
    let sets = checker.sets(&mut spec, parts.data.as_ref(), task, tokenizer.as_ref(), positions);
    // The base's own errors come first: they may be the reason of the others.
    let later = checker.errors.split_off(told);
    let shape = base_dir.as_deref().and_then(|dir| checker.shape(dir, head(task, sets.outputs)));
    checker.errors.extend(later);
    let trains = parts.action == Some(Action::Train);
    let targets = match (&shape, &parts.adapter) {
        (Some(shape), Some(adapter)) if trains && !checker.has_errors("adapter") => {
            checker.keep(targets::resolve(adapter, shape))
        }
        _ => None,
    };
    let max_length = spec.train.map_or(0, |train| train.max_length) as usize;
    let looks_at_data = parts.action != Some(Action::Merge);
    if let (Some(shape), false) = (&shape, checker.has_errors("train.max_length") || !looks_at_data) {
        checker.errors.extend(too_long(max_length, shape));
    }
    if let (Some(shape), Some(tokenizer)) = (&shape, &tokenizer) {
        checker.prompts(&spec, tokenizer, shape);
    }
    let summary = (|| {
        let job = Job::try_from(&spec).ok().filter(|_| checker.errors.is_empty())?;
        let (shape, targets, train) = (shape?, targets?, sets.train?);
        let plan = Plan::new(&job, &shape, &targets, &train);
        Some(Summary { shape, targets, train, eval: sets.eval, plan })
    })();
    Report { errors: checker.errors, notes: checker.notes, spec, summary }
}

/// The head that a task wants, with `outputs` numbers for a classifier.
pub fn head(task: Task, outputs: usize) -> Head {
    match task {
        Task::CausalLm => Head::LanguageModel,
        Task::Classification => Head::Classifier { labels: outputs },
    }
}

/// Checks a job against its base: the layers that it trains; none where it trains nothing.
///
/// # Errors
/// Every field that does not fit the base.
pub fn job_on_base(job: &Job, shape: &BaseShape) -> Result<Vec<Target>, Vec<FieldError>> {
    if job.action == Action::Merge {
        return Ok(Vec::new());
    }
    let length = too_long(job.train.max_length as usize, shape);
    if job.action == Action::Evaluate {
        return length.map_or(Ok(Vec::new()), |error| Err(vec![error]));
    }
    match (targets::resolve(&job.adapter, shape), length) {
        (Ok(targets), None) => Ok(targets),
        (Ok(_), Some(error)) => Err(vec![error]),
        (Err(mut errors), length) => {
            errors.extend(length);
            Err(errors)
        }
    }
}

fn too_long(max_length: usize, shape: &BaseShape) -> Option<FieldError> {
    (max_length > shape.max_positions).then(|| {
        let message =
            format!("is {max_length}, longer than the {} positions of the base", shape.max_positions);
        FieldError::new("train.max_length", message)
    })
}

/// Looks at files, and collects what is wrong.
struct Checker<'a> {
    dir: &'a Path,
    errors: Vec<FieldError>,
    notes: Vec<String>,
}

impl Checker<'_> {
    fn error(&mut self, path: &str, message: impl ToString) {
        self.errors.push(FieldError::new(path, message.to_string()));
    }

    fn has_errors(&self, section: &str) -> bool {
        self.errors.iter().any(|error| job::covers(section, &error.path) || job::covers(&error.path, section))
    }

    fn keep<T>(&mut self, result: Result<T, Vec<FieldError>>) -> Option<T> {
        result.map_err(|errors| self.errors.extend(errors)).ok()
    }

    /// The folder of the base; a note when it lies elsewhere.
    fn base(&mut self, base: Option<&pb::BaseRef>) -> Option<PathBuf> {
        let source = base.map(|base| base.source.as_str()).filter(|source| !source.is_empty())?;
        let (place, remedy) = match BaseSource::parse(source, self.dir) {
            BaseSource::Folder(dir) => return Some(dir),
            BaseSource::Hub(id) => (format!("{id} on the hub"), "submitting fetches and checks it"),
            BaseSource::Url(url) => (url, "submitting fetches and checks it, where no sha256 is given"),
        };
        self.notes.push(format!("base: {place} is not on this machine, so it is not checked here; {remedy}"));
        None
    }

    /// The local path of a data set; a note when it lies elsewhere.
    fn source(&mut self, path: &str, source: Option<&str>) -> Option<PathBuf> {
        let source = source.filter(|source| !source.is_empty())?;
        if source.contains("://") {
            self.notes.push(format!("{path}: {source} is not on this machine, so it is not checked here"));
            return None;
        }
        Some(self.dir.join(source))
    }

    fn shape(&mut self, dir: &Path, head: Head) -> Option<BaseShape> {
        match BaseShape::read(dir, head) {
            Ok(shape) => Some(shape),
            Err(BaseError::Many(errors)) => {
                errors.into_iter().for_each(|error| self.error("base", error));
                None
            }
            Err(error) => {
                self.error("base", error);
                None
            }
        }
    }

    fn tokenizer(&mut self, dir: &Path) -> Option<Tokenizer> {
        if !dir.is_dir() {
            return None; // told already
        }
        Tokenizer::load(dir).map_err(|error| self.error("base", error)).ok()
    }

    fn prompts(&mut self, spec: &pb::JobSpec, tokenizer: &Tokenizer, shape: &BaseShape) {
        let Some(eval) = &spec.eval else { return };
        for (i, prompt) in eval.prompts.iter().enumerate() {
            let path = format!("eval.prompts[{i}]");
            match tokenizer.encode_prompt(prompt) {
                Ok(tokens) if tokens.len() >= shape.max_positions => {
                    let (tokens, positions) = (tokens.len(), shape.max_positions);
                    self.error(
                        &path,
                        format!("has {tokens} tokens; the base's {positions} positions leave no room"),
                    );
                }
                Ok(_) => {}
                Err(error) => self.error(&path, error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
