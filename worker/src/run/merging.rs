//! A job that merges an adapter into its base: a whole model, written to the store as the job's final checkpoint.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use lorafleet_lora::adapter::merge::{MergeError, Merged, merge};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::job::Job;
use lorafleet_store::{Checkpoint, Digest};
use tracing::info;

use super::{
    Run,
    checkpoints::{Checkpoints, Of},
    end::{End, Halt},
    folder::Folder,
    generation::{Course, Generation},
    life::Work,
    prepare,
    start::{self, Found},
};
use crate::{
    base_cache::BaseFiles,
    collective::{Abort, Collective, CollectiveError},
};

/// How long the store is tried before the place looks around.
const ROUND: Duration = Duration::from_secs(60);
/// Between a round that failed at once and the next.
const PAUSE: Duration = Duration::from_secs(5);
/// The file whose digest names the model, by the order in which they are looked for.
const WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// A merge that has its base and adapter on this machine.
pub(super) struct Merging<'a> {
    run: &'a Run,
    files: BaseFiles,
    found: Found,
    checkpoints: Checkpoints<'a>,
    /// The model, once it is whole; the next generation need not merge again.
    merged: Option<(Arc<Folder>, Merged)>,
}

impl<'a> Merging<'a> {
    /// Fetches base and adapter.
    pub fn prepare(run: &'a Run, job: &Job, spec_sha256: Digest) -> Result<Self, End> {
        run.check_loading()?;
        let files = prepare::base_files(run, job)?;
        run.check_loading()?;
        let start = job.adapter.start.as_ref();
        let start = start.ok_or_else(|| End::Failed("spec.adapter: names no adapter to merge".into()))?;
        let found = start::find(run, start)?;
        run.check_loading()?;
        let of = Of { spec_sha256, scale_bits: 0, more: BTreeMap::new() };
        Ok(Self { run, files, found, checkpoints: Checkpoints::new(run, of)?, merged: None })
    }

    /// As the coordinator is told.
    pub fn ready(&self) -> pb::Ready {
        pb::Ready {
            job: self.run.assign.job.clone(),
            fence: self.run.assign.fence.clone(),
            base_sha256: self.files.digest.to_string(),
            place: self.run.assign.place,
            ..Default::default()
        }
    }

    /// Merges, unless it is done; or says why it ends before.
    fn merge(&mut self, abort: &Abort) -> Result<Option<Course>, Halt> {
        if self.merged.is_some() {
            return Ok(None);
        }
        let dir = self.scratch()?;
        let mut ended = Ok(None);
        let mut watch = |_: lorafleet_lora::adapter::merge::Progress<'_>| {
            ended = Course::before_the_end(self.run, abort);
            if matches!(ended, Ok(None)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let merged = merge(&self.files.dir, &self.found.dir, &dir, None, &mut watch);
        match merged {
            Ok(merged) => {
                info!(changed = merged.changed, copied = merged.copied, "merged");
                self.merged = Some((Arc::new(Folder::new(dir)), merged));
                Ok(None)
            }
            Err(MergeError::BrokenOff) => ended,
            Err(error @ MergeError::Io { .. }) => Err(End::lost(error.to_string()).into()),
            Err(error) => Err(End::Failed(format!("merging {}: {error}", self.found.name)).into()),
        }
    }

    /// Where the model is put together: it is not there yet.
    fn scratch(&self) -> Result<PathBuf, End> {
        let assign = &self.run.assign;
        let id = assign.job.strip_prefix("jobs/").unwrap_or(&assign.job);
        let attempt = assign.fence.as_ref().map_or(0, |fence| fence.attempt);
        let scratch = self.run.workshop.cache.scratch(id, attempt);
        scratch.map_err(|error| End::lost(format!("the folder for the merge: {error}")))
    }

    /// Writes the model to the store, however long that is away; or says why it ends before.
    fn write(&mut self, folder: &Arc<Folder>, abort: &Abort) -> Result<Result<Checkpoint, Course>, Halt> {
        loop {
            if let Some(course) = Course::before_the_end(self.run, abort)? {
                return Ok(Err(course));
            }
            let started = Instant::now();
            match self.checkpoints.write_model(folder, ROUND) {
                Ok(checkpoint) => return Ok(Ok(checkpoint)),
                Err(End::Lost(reason)) if self.run.control.is_superseded() => {
                    return Err(Halt::Broken(CollectiveError::Aborted { reason }));
                }
                // An event has said why. Whatever ends the pause is seen at the top.
                Err(End::Lost(_)) if started.elapsed() < PAUSE => {
                    self.run.control.wait_end(PAUSE, true);
                }
                Err(End::Lost(_)) => {}
                Err(end) => return Err(end.into()),
            }
        }
    }

    fn succeeded(&self, checkpoint: &Checkpoint, merged: &Merged) -> pb::Succeeded {
        let files = &checkpoint.manifest.files;
        let named = |wanted: &&str| files.iter().find(|(name, _)| name.as_str() == *wanted);
        let weights = WEIGHTS.iter().find_map(named);
        let untied = match merged.untied {
            true => "; the output head and the token embedding, one tensor in the base, are two",
            false => "",
        };
        let message = format!(
            "{} is merged into the base: {} tensors changed, {} copied{untied}",
            self.found.name, merged.changed, merged.copied
        );
        let result = pb::JobResult {
            checkpoint: checkpoint.id().resource_name(&checkpoint.manifest.job),
            adapter_sha256: weights.map(|(_, file)| file.sha256.to_string()).unwrap_or_default(),
            ..Default::default()
        };
        pb::Succeeded { checkpoint: Some(checkpoint.to_proto()), result: Some(result), message }
    }
}

impl Work for Merging<'_> {
    fn course(&mut self, _: &Generation, collective: &mut dyn Collective) -> Result<Course, Halt> {
        let abort = collective.abort_handle();
        if let Some(course) = self.merge(&abort)? {
            return Ok(course);
        }
        let Some((folder, merged)) = self.merged.clone() else {
            return Err(End::lost("the merge made nothing").into());
        };
        Ok(match self.write(&folder, &abort)? {
            Ok(checkpoint) => Course::Succeeded(Box::new(self.succeeded(&checkpoint, &merged))),
            Err(course) => course,
        })
    }

    fn abandon(&mut self) {}

    fn keep(&mut self) -> Result<(), Halt> {
        Ok(())
    }
}
