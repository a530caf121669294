//! The Tenants service where no token is asked for: quotas set and lifted, names refused, tenants deleted or kept.

use lorafleet_proto::v1 as pb;
use pb::tenants_client::TenantsClient;
use pbjson_types::FieldMask;
use tonic::Code;

use crate::bed::Bed;

fn create(tenant_id: &str, tenant: pb::Tenant) -> pb::CreateTenantRequest {
    pb::CreateTenantRequest { tenant_id: tenant_id.into(), tenant: Some(tenant) }
}

#[tokio::test]
async fn tenants_are_made_changed_and_listed() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut tenants = TenantsClient::new(coordinator.channel().await);
    let asked = pb::Tenant { weight: 3.0, max_workers: Some(4), max_queued: Some(0), ..Default::default() };
    let made = tenants.create_tenant(create("team-a", asked.clone())).await.expect("made").into_inner();
    assert_eq!((made.name.as_str(), made.weight, made.window_seconds), ("tenants/team-a", 3.0, 604_800));
    assert_eq!((made.max_workers, made.max_queued, made.max_stored_bytes), (Some(4), Some(0), None));
    let status = tenants.create_tenant(create("team-a", asked)).await.expect_err("there is one");
    assert_eq!(status.code(), Code::AlreadyExists);

    let new = pb::Tenant { name: made.name.clone(), max_stored_bytes: Some(1 << 40), ..Default::default() };
    let paths = vec!["max_stored_bytes".into(), "max_workers".into()];
    let update = pb::UpdateTenantRequest { tenant: Some(new), update_mask: Some(FieldMask { paths }) };
    let changed = tenants.update_tenant(update).await.expect("changed").into_inner();
    assert_eq!(changed, pb::Tenant { max_workers: None, max_stored_bytes: Some(1 << 40), ..made.clone() });
    let got = tenants.get_tenant(pb::GetTenantRequest { name: made.name.clone() }).await.expect("there");
    assert_eq!(got.into_inner(), changed);

    let page = |page_token| pb::ListTenantsRequest { page_size: 1, page_token };
    let first = tenants.list_tenants(page(String::new())).await.expect("listed").into_inner();
    assert_eq!(first.tenants[0].name, "tenants/default");
    let second = tenants.list_tenants(page(first.next_page_token)).await.expect("listed").into_inner();
    assert_eq!((second.tenants, second.next_page_token.as_str()), (vec![changed], ""));
    let status = tenants.list_tenants(page("forged".into())).await.expect_err("none of its own");
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = tenants.create_tenant(create("Team A", pb::Tenant::default())).await.expect_err("no name");
    assert!(status.message().starts_with("tenant_id"), "{status:?}");
}

#[tokio::test]
async fn a_tenant_with_jobs_stays_and_one_without_goes() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut tenants = TenantsClient::new(coordinator.channel().await);
    let spec = |tenant: &str| pb::JobSpec { tenant: tenant.into(), ..bed.spec(1, 1) };
    let submit = |tenant: &str| pb::CreateJobRequest { spec: Some(spec(tenant)), ..Default::default() };
    let mut jobs = coordinator.jobs().await;
    let status = jobs.create_job(submit("team-a")).await.expect_err("there is none yet");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "spec.tenant: there is no tenant `team-a`");

    for name in ["team-a", "team-b"] {
        tenants.create_tenant(create(name, pb::Tenant::default())).await.expect("made");
    }
    let token = pb::Token { role: pb::TokenRole::Viewer.into(), ..Default::default() };
    let request = pb::CreateTokenRequest { parent: "tenants/team-b".into(), token: Some(token) };
    tenants.create_token(request).await.expect("a token");
    jobs.create_job(submit("team-a")).await.expect("a job");
    let default = jobs.create_job(submit("")).await.expect("a job").into_inner();
    assert_eq!(default.spec.expect("a spec").tenant, "default");

    let mut delete = async |name: &str| {
        let request = pb::DeleteTenantRequest { name: format!("tenants/{name}") };
        tenants.delete_tenant(request).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(delete("team-a").await, Err(Code::FailedPrecondition), "it has a job");
    assert_eq!(delete("default").await, Err(Code::FailedPrecondition));
    assert_eq!(delete("team-b").await, Ok(()), "with its token");
    assert_eq!(delete("team-b").await, Err(Code::NotFound));
    assert_eq!(bed.count("select count(*) from tenants").await, 2);
    let status = jobs.create_job(submit("team-b")).await.expect_err("it is gone");
    assert_eq!(status.code(), Code::InvalidArgument);
}
