//! Tokens on the wire: nobody gets in without one, each role does what it may, and one tenant does not see the other.

use lorafleet_proto::{bearer::Bearer, v1 as pb};
use pb::{
    fleet_client::FleetClient, jobs_client::JobsClient, sweeps_client::SweepsClient,
    tenants_client::TenantsClient,
};
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};
use tonic_types::StatusExt as _;

use crate::bed::{Bed, Coordinator, soon};

/// A fleet that asks for tokens, with tenants `team-a` and `team-b`.
struct Guarded {
    bed: Bed,
    coordinator: Coordinator,
    channel: Channel,
    admin: String,
    folder: tempfile::TempDir,
}

type Line = InterceptedService<Channel, Bearer>;

impl Guarded {
    async fn new() -> Self {
        let bed = Bed::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("admin.token");
        let path = file.to_str().expect("UTF-8").to_owned();
        let coordinator = bed.coordinator_with(&["--require-tokens", "--bootstrap-token", &path]).await;
        let channel = coordinator.channel().await;
        // Before it serves; its port takes connections earlier.
        let written = soon("the first token", || async { std::fs::read_to_string(&file).ok() }).await;
        let admin = written.trim().to_owned();
        let this = Self { bed, coordinator, channel, admin, folder };
        for tenant_id in ["team-a", "team-b"] {
            let request = pb::CreateTenantRequest { tenant_id: tenant_id.into(), tenant: None };
            this.tenants(&this.admin).create_tenant(request).await.expect("a tenant");
        }
        this
    }

    fn line(&self, token: &str) -> Line {
        InterceptedService::new(self.channel.clone(), Bearer::new(token).expect("fit"))
    }

    fn jobs(&self, token: &str) -> JobsClient<Line> {
        JobsClient::new(self.line(token))
    }

    fn tenants(&self, token: &str) -> TenantsClient<Line> {
        TenantsClient::new(self.line(token))
    }

    async fn token(&self, tenant: &str, role: pb::TokenRole) -> pb::CreateTokenResponse {
        let token = pb::Token { role: role.into(), description: "test".into(), ..Default::default() };
        let request = pb::CreateTokenRequest { parent: format!("tenants/{tenant}"), token: Some(token) };
        self.tenants(&self.admin).create_token(request).await.expect("a token").into_inner()
    }

    async fn secret(&self, tenant: &str, role: pb::TokenRole) -> String {
        self.token(tenant, role).await.secret
    }

    async fn submit(&self, token: &str, tenant: &str) -> Result<pb::Job, tonic::Status> {
        let spec = pb::JobSpec { tenant: tenant.into(), ..self.bed.spec(1, 1) };
        let request = pb::CreateJobRequest { spec: Some(spec), ..Default::default() };
        self.jobs(token).create_job(request).await.map(tonic::Response::into_inner)
    }

    async fn list(
        &self,
        token: &str,
        request: pb::ListJobsRequest,
    ) -> Result<pb::ListJobsResponse, tonic::Status> {
        self.jobs(token).list_jobs(request).await.map(tonic::Response::into_inner)
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, code: Code, says: &str) {
    let status = answer.expect_err(says);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(says), "says {says}: {}", status.message());
}

fn viewer_request() -> pb::ListJobsRequest {
    pb::ListJobsRequest::default()
}

#[tokio::test]
async fn each_call_needs_a_token_of_its_role() {
    let fleet = Guarded::new().await;
    refused(fleet.list("", viewer_request()).await, Code::Unauthenticated, "a token of the role viewer");
    refused(fleet.list("secret", viewer_request()).await, Code::Unauthenticated, "Bearer lft_");
    let unknown = format!("lft_{}", "0".repeat(64));
    refused(fleet.list(&unknown, viewer_request()).await, Code::Unauthenticated, "does not know the token");
    let ask = tonic_health::pb::HealthCheckRequest::default();
    let mut health = tonic_health::pb::health_client::HealthClient::new(fleet.channel.clone());
    health.check(ask).await.expect("probes have no token");

    let viewer = fleet.secret("team-a", pb::TokenRole::Viewer).await;
    let submitter = fleet.secret("team-a", pb::TokenRole::Submitter).await;
    let operator = fleet.secret("default", pb::TokenRole::Operator).await;
    fleet.list(&viewer, viewer_request()).await.expect("a viewer looks");
    refused(fleet.submit(&viewer, "").await, Code::PermissionDenied, "needs the role submitter");
    let job = fleet.submit(&submitter, "").await.expect("a submitter submits");
    assert_eq!(job.spec.expect("a spec").tenant, "team-a", "the token's tenant");
    let register = pb::RegisterWorkerRequest::default;
    let fleet_of = |token: &str| FleetClient::new(fleet.line(token));
    let mut worker = fleet_of(&submitter);
    refused(worker.register_worker(register()).await, Code::PermissionDenied, "needs the role operator");
    let status = fleet_of(&operator).register_worker(register()).await.expect_err("an empty request");
    assert_eq!(status.code(), Code::FailedPrecondition, "let in, and read: {status:?}");
    let tenants = fleet.tenants(&operator).list_tenants(pb::ListTenantsRequest::default()).await;
    refused(tenants, Code::PermissionDenied, "needs the role admin");
}

#[tokio::test]
async fn a_revoked_token_is_none_and_the_first_one_outlives_a_restart() {
    let fleet = Guarded::new().await;
    let made = fleet.token("team-a", pb::TokenRole::Viewer).await;
    fleet.list(&made.secret, viewer_request()).await.expect("valid");
    let name = made.token.expect("a token").name;
    let revoke = pb::RevokeTokenRequest { name: name.clone() };
    let revoked =
        fleet.tenants(&fleet.admin).revoke_token(revoke.clone()).await.expect("revoked").into_inner();
    refused(fleet.list(&made.secret, viewer_request()).await, Code::Unauthenticated, "was revoked");
    let again = fleet.tenants(&fleet.admin).revoke_token(revoke).await.expect("it stays so").into_inner();
    assert_eq!(again.revoke_time, revoked.revoke_time);
    let listed = pb::ListTokensRequest { parent: "tenants/team-a".into(), ..Default::default() };
    let tokens = fleet.tenants(&fleet.admin).list_tokens(listed).await.expect("listed").into_inner().tokens;
    assert_eq!(tokens, [revoked]);
    let digests = "select count(*) from api_tokens where sha256 is not null and octet_length(sha256) = 32";
    assert_eq!(fleet.bed.count(digests).await, 2, "digests are all that is kept");

    let path = fleet.folder.path().join("admin.token");
    let flags = ["--require-tokens", "--bootstrap-token", path.to_str().expect("UTF-8")];
    let other = fleet.bed.coordinator_with(&flags).await;
    let line = InterceptedService::new(other.channel().await, Bearer::new(&fleet.admin).expect("fit"));
    JobsClient::new(line).list_jobs(viewer_request()).await.expect("the same token");
    assert_eq!(fleet.bed.count(digests).await, 2, "and no second one was made");
    other.stop().await;
    fleet.coordinator.stop().await;
}

#[tokio::test]
async fn one_tenant_does_not_see_the_others_jobs() {
    let fleet = Guarded::new().await;
    let (a, b) = (
        fleet.secret("team-a", pb::TokenRole::Submitter).await,
        fleet.secret("team-b", pb::TokenRole::Submitter).await,
    );
    let operator = fleet.secret("default", pb::TokenRole::Operator).await;
    let own = fleet.submit(&a, "").await.expect("a job").name;
    let second = fleet.submit(&operator, "team-a").await.expect("an operator submits for all").name;
    let others = fleet.submit(&b, "team-b").await.expect("a job").name;

    let mut b_jobs = fleet.jobs(&b);
    let name = || own.clone();
    refused(b_jobs.get_job(pb::GetJobRequest { name: name() }).await, Code::NotFound, &own);
    refused(b_jobs.cancel_job(pb::CancelJobRequest { name: name() }).await, Code::NotFound, &own);
    refused(b_jobs.pause_job(pb::PauseJobRequest { name: name() }).await, Code::NotFound, &own);
    refused(b_jobs.explain_job(pb::ExplainJobRequest { name: name() }).await, Code::NotFound, &own);
    let watch = b_jobs.watch_job(pb::WatchJobRequest { name: name(), ..Default::default() }).await;
    refused(watch.map(drop), Code::NotFound, &own);
    let events = pb::ListEventsRequest { parent: name(), ..Default::default() };
    refused(b_jobs.list_events(events).await, Code::NotFound, &own);
    let queue = pb::QueueSpec { after: vec![name()], ..Default::default() };
    let spec = pb::JobSpec { queue: Some(queue), ..fleet.bed.spec(1, 1) };
    let request = pb::CreateJobRequest { spec: Some(spec), ..Default::default() };
    refused(b_jobs.create_job(request).await, Code::InvalidArgument, &own);
    refused(fleet.submit(&b, "team-a").await, Code::PermissionDenied, "of tenant team-b");

    let names = |page: pb::ListJobsResponse| page.jobs.into_iter().map(|job| job.name).collect::<Vec<_>>();
    assert_eq!(names(fleet.list(&b, viewer_request()).await.expect("listed")), std::slice::from_ref(&others));
    let of = |tenant: &str| pb::ListJobsRequest { tenant: tenant.into(), ..Default::default() };
    refused(fleet.list(&b, of("team-a")).await, Code::NotFound, "tenants/team-a");
    assert_eq!(names(fleet.list(&operator, of("team-a")).await.expect("listed")), [second, own]);
    refused(fleet.list(&operator, of("team-c")).await, Code::NotFound, "tenants/team-c");
    assert_eq!(fleet.list(&operator, viewer_request()).await.expect("listed").jobs.len(), 3);

    let first = pb::ListJobsRequest { page_size: 1, ..Default::default() };
    let token = fleet.list(&a, first.clone()).await.expect("a page").next_page_token;
    for forged in [token, "00".repeat(12), "not a token".to_owned()] {
        let request = pb::ListJobsRequest { page_token: forged, ..first.clone() };
        refused(fleet.list(&b, request).await, Code::InvalidArgument, "page_token");
    }
}

#[tokio::test]
async fn one_tenant_does_not_see_the_others_sweeps() {
    let fleet = Guarded::new().await;
    let (a, b) = (
        fleet.secret("team-a", pb::TokenRole::Submitter).await,
        fleet.secret("team-b", pb::TokenRole::Submitter).await,
    );
    let values = pb::SweepValues { json: vec!["2".into(), "4".into()] };
    let choices = pb::sweep_parameter::Choices::Values(values);
    let rank = pb::SweepParameter { path: "adapter.rank".into(), choices: Some(choices) };
    let sweep = pb::SweepSpec { parameters: vec![rank], ..Default::default() };
    let request = |tenant: &str| pb::CreateSweepRequest {
        spec: Some(pb::JobSpec { tenant: tenant.into(), ..fleet.bed.spec(1, 1) }),
        sweep: Some(sweep.clone()),
        ..Default::default()
    };
    let sweeps = |token: &str| SweepsClient::new(fleet.line(token));
    let name = sweeps(&a).create_sweep(request("")).await.expect("a sweep").into_inner().name;
    assert_eq!(
        fleet.list(&a, viewer_request()).await.expect("listed").jobs.len(),
        2,
        "its children are team-a's"
    );
    refused(sweeps(&b).get_sweep(pb::GetSweepRequest { name: name.clone() }).await, Code::NotFound, &name);
    refused(
        sweeps(&b).cancel_sweep(pb::CancelSweepRequest { name: name.clone() }).await,
        Code::NotFound,
        &name,
    );
    let all = pb::ListSweepsRequest::default;
    assert_eq!(sweeps(&a).list_sweeps(all()).await.expect("listed").into_inner().sweeps.len(), 1);
    assert_eq!(sweeps(&b).list_sweeps(all()).await.expect("listed").into_inner().sweeps, []);
    refused(sweeps(&b).create_sweep(request("team-a")).await, Code::PermissionDenied, "spec.tenant");
    let status = sweeps(&fleet.admin).create_sweep(request("team-c")).await.expect_err("unknown");
    let details = status.get_error_details();
    let fields: Vec<_> = details.bad_request().expect("violations").field_violations.iter().collect();
    assert_eq!((fields.len(), fields[0].field.as_str()), (1, "spec.tenant"));
}
