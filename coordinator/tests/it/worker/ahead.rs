//! What a simulated worker does around a database that forgets, and when it falls silent.

use std::sync::Arc;

use lorafleet_proto::v1 as pb;
use pb::coordinator_message::Message as Down;

use super::{Place, Worker, registration};
use crate::bed::Coordinator;

impl Worker {
    /// All that has come and was not looked at.
    pub fn seen(&mut self) -> Vec<Down> {
        std::iter::from_fn(|| self.down.try_recv().ok()).collect()
    }

    /// Lists this place, in the generation of its fence, and no other of its job.
    pub fn lists(&self, place: &Place) {
        let mut running = self.running.lock().expect("no panic");
        running.retain(|(job, _), _| *job != place.assign.job);
        let listed = pb::RunningJob {
            job: place.assign.job.clone(),
            fence: place.assign.fence.clone(),
            step: 5,
            place: place.assign.place,
        };
        running.insert(place.key(), listed);
    }

    /// Falls silent: no heartbeat any more, while its connection stays.
    pub fn freeze(&self) {
        self.tasks[0].abort();
    }

    /// The same process registers again, as it does when it is told that it is not known; what it runs stays.
    pub async fn register_again(self, coordinator: &Coordinator) -> Self {
        let (name, running) = (self.name.clone(), Arc::clone(&self.running));
        let request = pb::RegisterWorkerRequest { process_id: self.process.clone(), ..registration(&name) };
        self.vanish();
        let response = coordinator.fleet().await.register_worker(request.clone()).await.expect("registered");
        Self::attach(coordinator, &request, &response.into_inner().worker_id, running).await
    }
}

impl Place {
    /// The same place and generation, in another attempt.
    pub fn in_attempt(&self, attempt: u32) -> Self {
        self.with_fence(pb::Fence { attempt, ..self.fence() })
    }
}
