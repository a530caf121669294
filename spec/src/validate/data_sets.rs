//! A job's data sets: which files they are, and what stands in them.

use std::path::Path;

use lorafleet_proto::v1 as pb;

use super::Checker;
use crate::{
    data::{self, DataError, DataFile, Dataset, FileCheck, Labels, ReadOptions, Rules, Tokenizer},
    job::{DataSpec, Task},
};

/// Bad rows of one data set that are told before the rest is left.
const BAD_ROWS: usize = 10;

/// What came of a job's data sets.
#[derive(Default)]
pub(super) struct Sets {
    /// How the training data was read; there when it could be, whole.
    pub train: Option<data::Summary>,
    /// How the evaluation data was read.
    pub eval: Option<data::Summary>,
    /// Numbers that a classifier's head puts out; 2 where that is not known.
    pub outputs: usize,
}

/// One data set in this machine's folders.
struct Local {
    files: Vec<DataFile>,
    /// Whether all of it is here.
    whole: bool,
}

impl Checker<'_> {
    /// Reads both data sets. Patterns in the spec become the files that match them, and a classification job that names
    /// no labels gets those of its training data.
    pub fn sets(
        &mut self,
        spec: &mut pb::JobSpec,
        valid: Option<&DataSpec>,
        task: Task,
        tokenizer: Option<&Tokenizer>,
        max_positions: usize,
    ) -> Sets {
        let mut sets = Sets { outputs: 2, ..Sets::default() };
        let max_length = spec.train.map_or(0, |train| train.max_length) as usize;
        let Some(data) = &mut spec.data else { return sets };
        let train = self.expand("data.train", &mut data.train);
        let eval = self.expand("data.eval", &mut data.eval);
        let options = match valid {
            Some(valid) => ReadOptions::of(task, valid, max_length.min(max_positions), max_positions),
            // Its own errors are told; the data can still be looked at.
            None => {
                Ok(ReadOptions { task, ..ReadOptions::causal(max_length.min(max_positions), max_positions) })
            }
        };
        let mut options = match options {
            Ok(options) => options,
            Err(error) => {
                self.error("data.labels", error);
                return sets;
            }
        };
        let mut found = options.labels.clone();
        if !train.files.is_empty() {
            let (summary, labels) = self.set("data.train", &train, tokenizer, &options);
            sets.train = summary.filter(|_| train.whole);
            // Those of a part could lack some.
            found = labels.filter(|_| train.whole).or(found);
        }
        if let Some(labels) = found {
            data.labels = labels.names().to_vec();
            sets.outputs = labels.outputs();
            options.labels = Some(labels);
        }
        // An overlap belongs to the training data's form; that of the evaluation data is the same or told already.
        if !eval.files.is_empty() {
            sets.eval = self.set("data.eval", &eval, tokenizer, &options).0.filter(|_| eval.whole);
        }
        sets
    }

    /// The local files of a data set.
    fn expand(&mut self, path: &str, refs: &mut Vec<pb::DataRef>) -> Local {
        let mut local = Local { files: Vec::new(), whole: true };
        let mut expanded = Vec::with_capacity(refs.len());
        for one in refs.drain(..) {
            if one.source.is_empty() || data::is_elsewhere(&one.source) {
                if !one.source.is_empty() {
                    self.source(path, Some(&one.source));
                }
                local.whole = false;
                expanded.push(one);
                continue;
            }
            match data::expand(&one.source, self.dir) {
                Ok(files) => {
                    let alone = files.len() == 1;
                    for (name, path) in files {
                        let sha256 = if alone { one.sha256.clone() } else { String::new() };
                        expanded.push(pb::DataRef { source: name.clone(), sha256 });
                        local.files.push(DataFile { name, path });
                    }
                }
                Err(error) => {
                    self.error(path, error);
                    local.whole = false;
                    expanded.push(one);
                }
            }
        }
        *refs = expanded;
        local
    }

    /// Reads one data set as far as it is here.
    fn set(
        &mut self,
        path: &str,
        local: &Local,
        tokenizer: Option<&Tokenizer>,
        options: &ReadOptions,
    ) -> (Option<data::Summary>, Option<Labels>) {
        for file in &local.files {
            if let Err(error) = open(&file.path) {
                self.error(path, format!("{} cannot be read: {error}", file.path.display()));
                return (None, None);
            }
        }
        let result = match tokenizer {
            Some(tokenizer) => Dataset::load(&local.files, tokenizer, options, BAD_ROWS)
                .map(|dataset| (Some(dataset.summary), dataset.labels)),
            // Without a tokenizer the rows can still be checked.
            None => check(&local.files, options).map(|labels| (None, labels)).map_err(|error| vec![error]),
        };
        result.unwrap_or_else(|errors| {
            errors.iter().for_each(|error| self.error(path, error));
            if errors.len() == BAD_ROWS && errors.iter().all(DataError::is_row) {
                self.error(path, format!("has {BAD_ROWS} bad rows so far; those after them were not read"));
            }
            (None, None)
        })
    }
}

/// Checks files without a tokenizer: what their labels are.
fn check(files: &[DataFile], options: &ReadOptions) -> Result<Option<Labels>, DataError> {
    let rules = Rules { task: Some(options.task), columns: options.columns.clone() };
    let mut check = FileCheck::new(&rules, options.labels.clone(), files.len() > 1);
    for file in files {
        check.path(&file.path, &file.name)?;
    }
    check.labels()
}

/// Opens a file; a folder opens too, but its first read would give a stranger error.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    if path.is_dir() {
        return Err(std::io::Error::other("it is a folder, not a file"));
    }
    std::fs::File::open(path)
}
