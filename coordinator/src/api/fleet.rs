//! The Fleet service: registration, one stream a worker, the list of workers.

use std::{
    collections::HashSet,
    pin::Pin,
    time::{Duration, Instant},
};

use futures::Stream;
use lorafleet_proto::{GANG_PROTOCOL_VERSION, v1 as pb};
use lorafleet_spec::check_label;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Services, error::ApiError, page::Page};
use crate::{
    access::Caller,
    db::within,
    fleet,
    hub::{self, Outbound, Seat},
    ids::{JobId, TenantId, WorkerId},
    intake::{Intake, IntakeError},
    queue, scheduler,
};

/// The first message of a stream must come within this time.
const HELLO: Duration = Duration::from_secs(10);
/// Slots that a worker may offer.
const MAX_SLOTS: u32 = 1024;
/// Bytes of names and addresses.
const MAX_NAME: usize = 253;

/// The service.
#[derive(Debug)]
pub struct FleetService {
    pub(super) services: Services,
}

impl FleetService {
    async fn register(
        &self,
        request: pb::RegisterWorkerRequest,
    ) -> Result<pb::RegisterWorkerResponse, ApiError> {
        check_registration(&request)?;
        let worker = within(fleet::register(&self.services.pool, &request)).await?;
        info!(worker = request.name, id = %worker, "worker registered");
        self.services.hub.want_scheduler();
        let terms = &self.services.terms;
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Ok(pb::RegisterWorkerResponse {
            worker_id: worker.to_string(),
            heartbeat_millis: millis(terms.heartbeat),
            lease_millis: millis(terms.lease),
            store_url: terms.store_url.clone(),
        })
    }

    async fn list(
        &self,
        caller: &Caller,
        request: pb::ListWorkersRequest,
    ) -> Result<pb::ListWorkersResponse, ApiError> {
        let page = Page::read(request.page_size, &request.page_token, "workers")?;
        let after = match &page.after {
            None => (false, 0),
            Some(key) => read_key(key).ok_or_else(|| ApiError::field("page_token", "is damaged"))?,
        };
        let mut rows = within(fleet::list(&self.services.pool, after, page.read_size())).await?;
        let next_page_token = page.cut(&mut rows, |row| format!("{}:{}", u8::from(row.gone), row.number));
        let mut workers: Vec<_> = rows.into_iter().map(|row| row.message).collect();
        if let Some(tenant) = caller.scope() {
            self.hide_jobs(&mut workers, tenant).await?;
        }
        Ok(pb::ListWorkersResponse { workers, next_page_token })
    }

    /// Leaves only the jobs of one tenant; what the others run is their own affair.
    async fn hide_jobs(&self, workers: &mut [pb::Worker], tenant: TenantId) -> Result<(), ApiError> {
        let jobs: Vec<JobId> = workers
            .iter()
            .flat_map(|worker| &worker.jobs)
            .filter_map(|job| JobId::from_name(job).ok())
            .collect();
        let own = within(queue::states(&self.services.pool, &jobs, Some(tenant))).await?;
        let own: HashSet<String> = own.into_iter().map(|(job, _)| job.name()).collect();
        for worker in workers {
            worker.jobs.retain(|job| own.contains(job));
        }
        Ok(())
    }
}

/// Reads `{gone}:{number}`.
fn read_key(key: &str) -> Option<(bool, i64)> {
    let (gone, number) = key.split_once(':')?;
    Some((gone == "1", number.parse().ok()?))
}

fn check_registration(request: &pb::RegisterWorkerRequest) -> Result<(), ApiError> {
    if request.protocol_version != GANG_PROTOCOL_VERSION {
        return Err(ApiError::Precondition {
            message: format!(
                "worker {} speaks gang protocol {}, this coordinator {GANG_PROTOCOL_VERSION}: run one version",
                request.name, request.protocol_version
            ),
            reason: "PROTOCOL_VERSION",
        });
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if request.name.is_empty() || request.name.len() > MAX_NAME || !request.name.chars().all(is_name) {
        return Err(ApiError::field("name", "must be letters, digits, '-', '_' and '.', at most 253"));
    }
    let port = request.collective_address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() || request.collective_address.len() > MAX_NAME + 6 {
        return Err(ApiError::field("collective_address", "must be host:port"));
    }
    let Some(resources) = &request.resources else {
        return Err(ApiError::field("resources", "is required"));
    };
    if !(1..=MAX_SLOTS).contains(&resources.slots) {
        return Err(ApiError::field("resources.slots", format!("must be 1 to {MAX_SLOTS}")));
    }
    for (name, value) in &request.labels {
        let field = format!("labels.{name}");
        if name == scheduler::DEVICE {
            return Err(ApiError::field(field, "is filled in by the coordinator; choose another name"));
        }
        if let Some(wrong) = check_label(name).or_else(|| check_label(value)) {
            return Err(ApiError::field(field, wrong));
        }
    }
    if [&resources.kind, &resources.device, &resources.version].iter().any(|text| text.contains('\0')) {
        return Err(ApiError::field("resources", "must not contain NUL"));
    }
    Ok(())
}

/// Reads one worker's stream until it ends, breaks the protocol or falls silent.
async fn take_in(
    services: Services,
    mut inbound: Streaming<pb::WorkerMessage>,
    outbox: mpsc::Sender<Outbound>,
) -> Result<(), IntakeError> {
    let silent = || IntakeError::Invalid("the stream is silent".to_owned());
    let broken = |status: Status| IntakeError::Invalid(format!("the stream broke: {}", status.message()));
    let first = tokio::time::timeout(HELLO, inbound.message()).await.map_err(|_| silent())?;
    let Some(first) = first.map_err(broken)? else { return Ok(()) };
    if !matches!(first.message, Some(pb::worker_message::Message::Heartbeat(_))) {
        return Err(IntakeError::Invalid("the first message of a stream is a heartbeat".to_owned()));
    }
    let worker: WorkerId = first.worker_id.parse()?;
    if within(fleet::beat(&services.pool, &[worker])).await?.is_empty() {
        let superseded = within(fleet::is_superseded(&services.pool, worker)).await?;
        // A worker that is gone meanwhile reads it or not; either way the stream ends.
        let _ = outbox.send(Ok(hub::unknown(superseded))).await;
        return Ok(());
    }
    let seat = services.hub.connect(worker, outbox.clone());
    let read = read_on(&services, inbound, &outbox, &seat, first).await;
    // Before anybody looks: an open stream says that its worker lives.
    drop(seat);
    within(services.conductor.stream_ended(worker)).await?;
    read
}

/// Reads a stream on from its first message.
async fn read_on(
    services: &Services,
    mut inbound: Streaming<pb::WorkerMessage>,
    outbox: &mpsc::Sender<Outbound>,
    seat: &Seat,
    first: pb::WorkerMessage,
) -> Result<(), IntakeError> {
    let worker = seat.worker();
    let silent = || IntakeError::Invalid("the stream is silent".to_owned());
    let broken = |status: Status| IntakeError::Invalid(format!("the stream broke: {}", status.message()));
    let mut intake = Intake {
        pool: &services.pool,
        hub: &services.hub,
        conductor: &services.conductor,
        seat,
        worker,
        draining: false,
    };
    let (mut next, mut new) = (Some(first), true);
    while let Some(message) = next {
        let heard = Instant::now();
        if message.worker_id != worker.to_string() {
            return Err(IntakeError::Invalid("worker_id changed within a stream".to_owned()));
        }
        if let Some(message) = &message.message {
            for answer in intake.handle(message).await? {
                let answer = pb::CoordinatorMessage { message: Some(answer) };
                if outbox.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            if std::mem::take(&mut new) {
                services.hub.want_dispatch();
            }
        }
        let read = tokio::select! {
            read = tokio::time::timeout(services.terms.lease, inbound.message()) => {
                read.map_err(|_| silent())?
            }
            () = outbox.closed() => Ok(None),
        };
        if !matches!(read, Ok(Some(_))) && closed_by_worker(services, heard) {
            // Or the next renewal of leases would say that it was heard of after it closed.
            services.hub.forget_heard(worker);
            within(fleet::set_closed(&services.pool, worker)).await?;
        }
        next = read.map_err(broken)?;
    }
    if intake.draining {
        within(fleet::leave(&services.pool, worker)).await?;
        services.hub.want_scheduler();
    }
    Ok(())
}

/// Whether a stream that ended is a sign of its worker's end. Not when this coordinator ends, and not when the worker
/// had been silent before: then its connection was given up, not closed.
fn closed_by_worker(services: &Services, heard: Instant) -> bool {
    !services.shutdown.is_cancelled() && heard.elapsed() < services.terms.lease / 2
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::fleet_server::Fleet for FleetService {
    type AttachStream = Pin<Box<dyn Stream<Item = Outbound> + Send>>;

    async fn register_worker(
        &self,
        request: Request<pb::RegisterWorkerRequest>,
    ) -> Answer<pb::RegisterWorkerResponse> {
        Ok(Response::new(self.register(request.into_inner()).await?))
    }

    async fn attach(&self, request: Request<Streaming<pb::WorkerMessage>>) -> Answer<Self::AttachStream> {
        let (outbox, outbound) = mpsc::channel(hub::OUTBOX);
        let services = self.services.clone();
        let shutdown = services.shutdown.clone();
        let inbound = request.into_inner();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = take_in(services, inbound, outbox.clone()) => ended,
                () = shutdown.cancelled() => Ok(()),
            };
            let Err(error) = ended else { return };
            warn!(%error, "worker stream closed");
            let status = match error {
                IntakeError::Invalid(message) => Status::invalid_argument(message),
                IntakeError::Db(error) => ApiError::from(error).into(),
            };
            // Closing matters more than the reason, which a full outbox does not take.
            let _ = outbox.try_send(Err(status));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> Answer<pb::ListWorkersResponse> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.list(&caller, request.into_inner()).await?))
    }
}
