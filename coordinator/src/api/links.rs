//! What jobs say of others: jobs that they come after, and jobs whose adapter they have.

use std::collections::HashMap;

use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    FieldError,
    job::submission::{self, After, Links, Misplaced},
};
use sqlx::PgPool;

use crate::{
    db::DbError,
    ids::{JobId, TenantId},
    job::JobState,
    queue,
};

const ADAPTER: &str = "adapter.start";

/// Replaces names of siblings by their resource names, and lets a job come after that whose adapter it has. Gives the
/// order in which to store them.
pub(super) fn name_siblings(specs: &mut [pb::JobSpec], ids: &[JobId]) -> Result<Vec<usize>, Vec<Misplaced>> {
    let links: Vec<Links<'_>> = specs.iter().map(Links::of).collect();
    let order = submission::order(&links)?;
    let name = |after| match after {
        After::Sibling(job) => ids[job].name(),
        After::Stored(name) => name,
    };
    for ((spec, after), adapter) in specs.iter_mut().zip(order.after).zip(order.adapters) {
        if let Some(queue) = &mut spec.queue {
            queue.after = after.into_iter().map(name).collect();
        }
        let start = spec.adapter.as_mut().and_then(|adapter| adapter.start.as_mut());
        if let (Some(start), Some(adapter)) = (start, adapter) {
            start.job = name(adapter);
        }
    }
    Ok(order.jobs)
}

/// What is wrong with what the jobs of a request say of others, job by job: those that they come after are there and have
/// not ended badly, and those whose adapter they have make one that fits. Names of siblings were replaced before. With a
/// `tenant`, jobs of others are not there.
pub(super) async fn mistakes(
    pool: &PgPool,
    tenant: Option<TenantId>,
    jobs: &[(JobId, &pb::JobSpec)],
) -> Result<Vec<Vec<FieldError>>, DbError> {
    let own: HashMap<JobId, &pb::JobSpec> = jobs.iter().copied().collect();
    let named: Vec<(Vec<Named>, Vec<FieldError>)> = jobs.iter().map(|(_, spec)| names(spec)).collect();
    let mut others: Vec<JobId> = named.iter().flat_map(|(named, _)| named).map(|named| named.job).collect();
    others.retain(|job| !own.contains_key(job));
    others.sort_unstable();
    others.dedup();
    if others.is_empty() && named.iter().all(|(named, wrong)| named.is_empty() && wrong.is_empty()) {
        return Ok(vec![Vec::new(); jobs.len()]);
    }
    let states: HashMap<JobId, JobState> = queue::states(pool, &others, tenant).await?.into_iter().collect();
    let adapters = named.iter().flat_map(|(named, _)| named).filter(|named| named.path == ADAPTER);
    let adapters = adapters.map(|named| named.job).filter(|job| states.contains_key(job));
    let trainers = queue::specs(pool, adapters).await?;
    let mut found = Vec::with_capacity(jobs.len());
    for ((_, spec), (named, mut errors)) in jobs.iter().zip(named) {
        for Named { path, job } in named {
            let sibling = own.get(&job).copied();
            let wrong = match (sibling, states.get(&job)) {
                (None, None) => Some("does not exist".to_owned()),
                (None, Some(state @ (JobState::Failed | JobState::Cancelled))) => {
                    Some(format!("{}: this job would never start", state.told()))
                }
                _ if path != ADAPTER => None,
                _ => sibling.or_else(|| trainers.get(&job)).and_then(|trainer| misfit(spec, trainer)),
            };
            errors.extend(
                wrong.map(|wrong| FieldError::new(path, format!("is {}, which {wrong}", job.name()))),
            );
        }
        found.push(errors);
    }
    Ok(found)
}

/// Another job, and the field that names it.
struct Named {
    path: String,
    job: JobId,
}

/// The jobs that a job names; and names that are none. The one whose adapter it has is named once, though it comes after
/// that, too.
fn names(spec: &pb::JobSpec) -> (Vec<Named>, Vec<FieldError>) {
    let links = Links::of(spec);
    let after = links.after.iter().enumerate();
    let after = after.filter(|(_, name)| links.adapter != Some(name.as_str()));
    let all = after.map(|(i, name)| (format!("queue.after[{i}]"), name.as_str()));
    let (mut named, mut wrong) = (Vec::new(), Vec::new());
    for (path, name) in all.chain(links.adapter.map(|name| (ADAPTER.to_owned(), name))) {
        match JobId::from_name(name) {
            Ok(job) => named.push(Named { path, job }),
            Err(error) => wrong.push(FieldError::new(path, error.to_string())),
        }
    }
    (named, wrong)
}

/// Why a job cannot have what another trains.
fn misfit(spec: &pb::JobSpec, trainer: &pb::JobSpec) -> Option<String> {
    let full = trainer.adapter.as_ref().is_some_and(|adapter| adapter.method() == pb::AdapterMethod::Full);
    let base = |spec: &pb::JobSpec| spec.base.clone().unwrap_or_default();
    if matches!(trainer.action(), pb::Action::Evaluate | pb::Action::Merge) {
        return Some("trains nothing: name the job that does".to_owned());
    }
    if full {
        return Some("is a full fine-tuning, whose result is a whole model without an adapter".to_owned());
    }
    if base(spec).sha256 != base(trainer).sha256 {
        return Some(format!("trains on another base ({}): give the same one", base(trainer).source));
    }
    (spec.task != trainer.task).then(|| "trains for another task: give the same `task`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(base: &str) -> pb::JobSpec {
        let base = pb::BaseRef { source: "./base".into(), sha256: base.into() };
        pb::JobSpec { base: Some(base), adapter: Some(pb::AdapterSpec::default()), ..Default::default() }
    }

    #[test]
    fn an_adapter_is_of_a_job_that_trains_one_on_the_same_base() {
        let why = |trainer: &pb::JobSpec| misfit(&spec("a"), trainer).unwrap_or_default();
        assert_eq!(why(&spec("a")), "");
        assert!(why(&spec("b")).contains("another base (./base)"));
        let merge = pb::JobSpec { action: pb::Action::Merge.into(), ..spec("a") };
        assert!(why(&merge).contains("trains nothing"));
        let full = pb::AdapterSpec { method: pb::AdapterMethod::Full.into(), ..Default::default() };
        assert!(why(&pb::JobSpec { adapter: Some(full), ..spec("a") }).contains("full fine-tuning"));
        let task = pb::Task::Classification.into();
        assert!(why(&pb::JobSpec { task, ..spec("a") }).contains("another task"));
    }
}
