//! What users do to a job's life: pause it, resume it, and ask why it stands where it does.

use lorafleet_proto::v1 as pb;

use super::{
    error::ApiError,
    jobs::{JobsService, not_found},
};
use crate::{
    access::Caller,
    db::{DbError, within},
    explain, gang,
    ids::JobId,
    queue,
};

impl JobsService {
    pub(super) async fn pause(&self, caller: &Caller, name: &str) -> Result<pb::Job, ApiError> {
        let job = self.job_of(caller, "name", name).await?;
        within(gang::pause(&self.services.pool, job)).await?;
        self.changed(job);
        self.get(job).await
    }

    pub(super) async fn resume(&self, caller: &Caller, name: &str) -> Result<pb::Job, ApiError> {
        let job = self.job_of(caller, "name", name).await?;
        within(gang::resume(&self.services.pool, job)).await?;
        self.changed(job);
        self.get(job).await
    }

    pub(super) async fn explain(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<pb::ExplainJobResponse, ApiError> {
        let id = self.job_of(caller, "name", name).await?;
        let job = self.get(id).await?;
        let pool = &self.services.pool;
        let read = async {
            let mut connection = pool.acquire().await?;
            let standing = queue::standing(&mut connection, id).await?;
            let held = queue::held_by(&mut connection, id).await?;
            Ok::<_, DbError>(standing.map(|standing| (standing, held)))
        };
        let (standing, held) = within(read).await?.ok_or_else(|| not_found(id))?;
        Ok(explain::explain(&job, &standing, &held))
    }

    fn changed(&self, job: JobId) {
        let hub = &self.services.hub;
        hub.job_changed(job);
        hub.want_dispatch();
        hub.want_scheduler();
    }
}
