//! Asks whichever coordinator answers: some may be dead, frozen or just starting.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lorafleet_proto::v1::{self as pb, fleet_client::FleetClient, jobs_client::JobsClient};
use tonic::transport::{Channel, Endpoint};

use crate::wait::until;

const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
const START: Duration = Duration::from_secs(60);

/// A client of several coordinators on one database.
#[derive(Clone, Debug)]
pub struct Client {
    addresses: Vec<SocketAddr>,
}

impl Client {
    /// Speaks to these.
    pub fn new(addresses: Vec<SocketAddr>) -> Client {
        Client { addresses }
    }

    /// Waits until that coordinator answers.
    pub async fn answers(&self, number: usize) -> Result<()> {
        until("the coordinator to answer", START, || async {
            let channel = connect(self.addresses[number]).await?;
            FleetClient::new(channel).list_workers(pb::ListWorkersRequest::default()).await?;
            Ok(Some(()))
        })
        .await
    }

    /// The job as it stands, once one of them answers.
    pub async fn job_soon(&self, name: &str) -> Result<pb::Job> {
        until("a coordinator to answer", START, || async { Ok(Some(self.job(name).await?)) }).await
    }

    /// The job as it stands.
    pub async fn job(&self, name: &str) -> Result<pb::Job> {
        let request = pb::GetJobRequest { name: name.into() };
        let ask = async |mut jobs: JobsClient<Channel>| Ok(jobs.get_job(request.clone()).await?.into_inner());
        self.any(ask).await
    }

    /// The job's events, oldest first.
    pub async fn events(&self, name: &str) -> Result<Vec<pb::JobEvent>> {
        let request = pb::ListEventsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        let ask = async |mut jobs: JobsClient<Channel>| {
            Ok(jobs.list_events(request.clone()).await?.into_inner().events)
        };
        self.any(ask).await
    }

    /// The job's points, in order of steps.
    pub async fn points(&self, name: &str) -> Result<Vec<pb::MetricPoint>> {
        let request =
            pb::ListMetricPointsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        let ask = async |mut jobs: JobsClient<Channel>| {
            Ok(jobs.list_metric_points(request.clone()).await?.into_inner().points)
        };
        self.any(ask).await
    }

    /// The job's attempts, first to last.
    pub async fn attempts(&self, name: &str) -> Result<Vec<pb::Attempt>> {
        let request = pb::ListAttemptsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        let ask = async |mut jobs: JobsClient<Channel>| {
            Ok(jobs.list_attempts(request.clone()).await?.into_inner().attempts)
        };
        self.any(ask).await
    }

    /// Hands on the job's updates as they come, until `take` wants no more.
    pub async fn watch(
        &self,
        name: &str,
        mut take: impl FnMut(pb::watch_job_response::Update) -> bool,
    ) -> Result<()> {
        let address = self.addresses.first().context("no coordinator")?;
        // Without a deadline: the stream is to last.
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let request = pb::WatchJobRequest { name: name.into(), ..Default::default() };
        let mut updates = JobsClient::new(channel).watch_job(request).await?.into_inner();
        while let Some(message) = updates.message().await? {
            if message.update.is_some_and(|update| !take(update)) {
                break;
            }
        }
        Ok(())
    }

    async fn any<T>(&self, mut ask: impl AsyncFnMut(JobsClient<Channel>) -> Result<T>) -> Result<T> {
        let mut last = None;
        for address in &self.addresses {
            match connect(*address).await {
                Ok(channel) => match ask(JobsClient::new(channel)).await {
                    Ok(value) => return Ok(value),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no coordinator")?)
    }
}

async fn connect(address: SocketAddr) -> Result<Channel> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(CONNECT).timeout(ANSWER);
    Ok(endpoint.connect().await?)
}
