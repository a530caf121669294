//! What a run left behind: the job's rows, and what the workers' logs say that they computed.

use std::collections::BTreeMap;

use anyhow::Result;
use lorafleet_proto::v1 as pb;
use serde_json::Value;

use super::rig::Rig;

/// A job at its end.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub job: pb::Job,
    pub events: Vec<pb::JobEvent>,
    pub points: Vec<pb::MetricPoint>,
    pub attempts: Vec<pb::Attempt>,
    /// Steps that members finished, in the order of their logs.
    pub finished: Vec<FinishedStep>,
    /// Of the downloaded adapter; none when the job has none.
    pub adapter_sha256: Option<String>,
}

/// A step that one member finished: it was summed, and the update was made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FinishedStep {
    pub attempt: u64,
    pub generation: u64,
    pub step: u64,
    pub member: Member,
}

/// Who computes: a worker that was put out and comes back takes another place, and holds nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub worker: String,
    pub place: u64,
}

impl Record {
    /// Collects it.
    pub async fn collect(rig: &Rig, name: &str) -> Result<Record> {
        let client = rig.client();
        // The last fault may have been a coordinator's death.
        let job = client.job_soon(name).await?;
        let succeeded = job.state() == pb::JobState::Succeeded;
        let adapter_sha256 = if succeeded { Some(rig.adapter_sha256(name)?) } else { None };
        let logs = rig.worker_logs();
        let finished = logs.iter().flat_map(|(worker, log)| finished_steps(worker, log, name));
        Ok(Record {
            events: client.events(name).await?,
            points: client.points(name).await?,
            attempts: client.attempts(name).await?,
            finished: finished.collect(),
            adapter_sha256,
            job,
        })
    }

    /// The history as people read it.
    pub fn history(&self) -> String {
        let mut text = format!(
            "{}: {} at step {}: {}\n",
            self.job.name,
            self.job.state().as_str_name(),
            self.job.step,
            self.job.state_message
        );
        for event in &self.events {
            let time =
                event.time.as_ref().map_or(0.0, |t| (t.seconds % 3600) as f64 + f64::from(t.nanos) * 1e-9);
            text += &format!(
                "  {:>3} {time:9.3} {}.{} {:<12} {}\n",
                event.number, event.attempt, event.generation, event.kind, event.message
            );
        }
        for attempt in &self.attempts {
            text += &format!(
                "  attempt {}: {} from step {}: {}\n",
                attempt.attempt,
                attempt.state().as_str_name(),
                attempt.start_step,
                attempt.message
            );
        }
        text += "  steps finished by generation:";
        for ((attempt, generation), steps) in self.steps_by_generation() {
            let (first, last) = (steps.keys().next(), steps.keys().next_back());
            text += &format!(" {attempt}.{generation}: {}–{}", first.unwrap_or(&0), last.unwrap_or(&0));
        }
        text.push('\n');
        text
    }

    /// For each generation, the steps that it finished and by how many members.
    pub fn steps_by_generation(&self) -> BTreeMap<(u64, u64), BTreeMap<u64, u32>> {
        let mut all: BTreeMap<(u64, u64), BTreeMap<u64, u32>> = BTreeMap::new();
        for done in &self.finished {
            *all.entry((done.attempt, done.generation)).or_default().entry(done.step).or_default() += 1;
        }
        all
    }
}

/// The lines of a worker's log that say that a step of the job is finished.
pub fn finished_steps(worker: &str, log: &str, job: &str) -> Vec<FinishedStep> {
    // Workers whose fence lasts for the whole run say it when they report the step.
    let said = if log.contains("\"step finished\"") { "step finished" } else { "step" };
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let span = &line["span"];
        let field = |name: &str| line[name].as_u64().or_else(|| span[name].as_u64());
        let is_step = line["message"] == said && span["job"] == job;
        is_step.then_some(())?;
        Some(FinishedStep {
            attempt: field("attempt")?,
            generation: field("generation")?,
            step: field("step")?,
            member: Member { worker: worker.to_owned(), place: field("place")? },
        })
    };
    log.lines().filter(|text| text.contains("\"step")).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_steps_are_read_from_a_log() {
        let log = concat!(
            "failpoint mid-reduction at step 2: Kill\n",
            r#"{"level":"DEBUG","step":3,"loss":1.5,"message":"step finished","span":{"job":"jobs/a","attempt":1,"generation":2,"place":4}}"#,
            "\n",
            r#"{"level":"DEBUG","step":3,"message":"step finished","span":{"job":"jobs/b","attempt":1,"generation":2}}"#,
            "\n",
            r#"{"level":"INFO","step":5,"message":"resumed","span":{"job":"jobs/a","attempt":1,"generation":2}}"#,
        );
        let member = Member { worker: "w1".into(), place: 4 };
        let done = FinishedStep { attempt: 1, generation: 2, step: 3, member };
        assert_eq!(finished_steps("w1", log, "jobs/a"), [done]);
    }
}
