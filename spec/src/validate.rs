//! Everything that can be said of a job file before it is sent: what the fleet would say, on a laptop.

use std::{
    fmt,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use lorafleet_proto::v1 as pb;

use crate::{
    base::{BaseError, BaseShape, BaseSource, Head},
    data::{self, DataError, Dataset, Tokenizer},
    job::{self, FieldError, Job},
    plan::Plan,
    targets::{self, Target},
};

/// Bad lines of one data set that are told before the rest is left.
const BAD_LINES: usize = 10;

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
    let (spec, parts, errors) = job::read_lenient(text);
    let mut checker = Checker { dir, errors, notes: Vec::new() };
    let base_dir = base.map(Path::to_owned).or_else(|| checker.base(spec.base.as_ref()));
    let shape = base_dir.as_deref().and_then(|dir| checker.shape(dir));
    let tokenizer = base_dir.as_deref().and_then(|dir| checker.tokenizer(dir));
    let targets = match (&shape, &parts.adapter) {
        (Some(shape), Some(adapter)) if !checker.has_errors("adapter") => {
            checker.keep(targets::resolve(adapter, shape))
        }
        _ => None,
    };
    let max_length = spec.train.map_or(0, |train| train.max_length) as usize;
    if let (Some(shape), false) = (&shape, checker.has_errors("train.max_length")) {
        checker.errors.extend(too_long(max_length, shape));
    }
    if let (Some(shape), Some(tokenizer)) = (&shape, &tokenizer) {
        checker.prompts(&spec, tokenizer, shape);
    }
    let max_positions = shape.as_ref().map_or(usize::MAX, |shape| shape.max_positions);
    let read = |checker: &mut Checker<'_>, path, data: Option<&pb::DataRef>| {
        let file = checker.source(path, data.map(|data| data.source.as_str()))?;
        checker.data(path, &file, tokenizer.as_ref(), max_length.min(max_positions), max_positions)
    };
    let train = read(&mut checker, "data.train", spec.data.as_ref().and_then(|data| data.train.first()));
    let eval = read(&mut checker, "data.eval", spec.data.as_ref().and_then(|data| data.eval.first()));
    let summary = (|| {
        let job = Job::try_from(&spec).ok().filter(|_| checker.errors.is_empty())?;
        let (shape, targets, train) = (shape?, targets?, train?);
        let plan = Plan::new(&job, &shape, &targets, &train);
        Some(Summary { shape, targets, train, eval, plan })
    })();
    Report { errors: checker.errors, notes: checker.notes, spec, summary }
}

/// Checks a job against its base: the layers that it trains.
///
/// # Errors
/// Every field that does not fit the base.
pub fn job_on_base(job: &Job, shape: &BaseShape) -> Result<Vec<Target>, Vec<FieldError>> {
    let length = too_long(job.train.max_length as usize, shape);
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

    fn shape(&mut self, dir: &Path) -> Option<BaseShape> {
        match BaseShape::read(dir, Head::LanguageModel) {
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

    fn data(
        &mut self,
        path: &str,
        file: &Path,
        tokenizer: Option<&Tokenizer>,
        max_length: usize,
        max_positions: usize,
    ) -> Option<data::Summary> {
        let reader = match open(file) {
            Ok(file) => BufReader::new(file),
            Err(error) => {
                self.error(path, format!("{} cannot be read: {error}", file.display()));
                return None;
            }
        };
        let result = match tokenizer {
            Some(tokenizer) => Dataset::read_all(reader, tokenizer, max_length, max_positions, BAD_LINES)
                .map(|dataset| Some(dataset.summary)),
            // Without a tokenizer the lines can still be checked.
            None => data::check_reader(reader).map(|_| None).map_err(|error| vec![error]),
        };
        match result {
            Ok(summary) => summary,
            Err(errors) => {
                for error in &errors {
                    self.error(path, error);
                }
                if errors.len() == BAD_LINES && errors.iter().all(|e| matches!(e, DataError::Line { .. })) {
                    self.error(
                        path,
                        format!("has {BAD_LINES} bad lines so far; those after them were not read"),
                    );
                }
                None
            }
        }
    }
}

/// Opens a file; a folder opens too, but its first read would give a stranger error.
fn open(path: &Path) -> std::io::Result<File> {
    if path.is_dir() {
        return Err(std::io::Error::other("it is a folder, not a file"));
    }
    File::open(path)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, plan) = (&self.shape, &self.plan);
        writeln!(
            f,
            "base     {} with {} parameters: {} layers, hidden {}, vocabulary {}, {} positions",
            shape.family.name,
            thousands(plan.base_parameters),
            shape.layers,
            shape.hidden,
            shape.vocab,
            shape.max_positions
        )?;
        let share = 100.0 * plan.trainable_parameters as f64
            / (plan.base_parameters + plan.trainable_parameters) as f64;
        writeln!(
            f,
            "adapter  {} parameters on {} linear layers, {share:.2}% of all",
            thousands(plan.trainable_parameters),
            self.targets.len()
        )?;
        for (name, data) in [("train", Some(&self.train)), ("eval", self.eval.as_ref())] {
            let Some(data) = data else { continue };
            writeln!(
                f,
                "{name:<8} {} examples ({}), {} tokens, {} of them labelled; {} cut off, {} left out",
                thousands(data.examples),
                data.format.name(),
                thousands(data.tokens),
                thousands(data.labelled_tokens),
                thousands(data.truncated),
                thousands(data.skipped)
            )?;
        }
        writeln!(
            f,
            "work     {} steps of about {} tokens and {:.1} GFLOP; {} bytes reduced a step",
            thousands(plan.total_steps),
            thousands(plan.tokens_per_step.round() as u64),
            plan.flops_per_step / 1e9,
            thousands(plan.reduced_bytes)
        )?;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "memory   about {} MiB a worker: base {}, adapter {}, activations {}",
            mib(plan.memory.total()),
            mib(plan.memory.base),
            mib(plan.memory.adapter),
            mib(plan.memory.activations)
        )
    }
}

/// 1234567 as 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
