//! `lorafleet tenant` and `lorafleet token`: what they send, with which token, and what they print.

use std::sync::{Arc, Mutex};

use lorafleet_proto::v1::{
    self as pb,
    tenants_server::{Tenants, TenantsServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{Ran, lorafleet_with};

const SECRET: &str = "lft_1111111111111111111111111111111111111111111111111111111111111111";

/// Answers from what it was told; notes the tokens that it was shown.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    tenants: Vec<pb::Tenant>,
    updates: Vec<pb::UpdateTenantRequest>,
    tokens: Vec<pb::Token>,
    shown: Vec<Option<String>>,
}

impl Script {
    async fn serve() -> (Self, String) {
        let this = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(TenantsServer::new(this.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (this, url)
    }

    /// Notes what was shown, and changes what is known.
    fn tell<R, T>(
        &self,
        request: Request<R>,
        change: impl FnOnce(&mut Told, R) -> T,
    ) -> Result<Response<T>, Status> {
        let mut told = self.0.lock().unwrap();
        let shown = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        told.shown.push(shown);
        Ok(Response::new(change(&mut told, request.into_inner())))
    }
}

#[tonic::async_trait]
impl Tenants for Script {
    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        self.tell(request, |told, request| {
            let mut tenant = request.tenant.unwrap();
            tenant.name = format!("tenants/{}", request.tenant_id);
            told.tenants.push(tenant.clone());
            tenant
        })
    }

    async fn get_tenant(&self, _: Request<pb::GetTenantRequest>) -> Result<Response<pb::Tenant>, Status> {
        Err(Status::permission_denied("this needs the role admin or above"))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<Response<pb::ListTenantsResponse>, Status> {
        self.tell(request, |told, _| pb::ListTenantsResponse {
            tenants: told.tenants.clone(),
            ..Default::default()
        })
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Result<Response<pb::Tenant>, Status> {
        self.tell(request, |told, request| {
            told.updates.push(request.clone());
            request.tenant.unwrap()
        })
    }

    async fn delete_tenant(
        &self,
        request: Request<pb::DeleteTenantRequest>,
    ) -> Result<Response<pbjson_types::Empty>, Status> {
        self.tell(request, |_, _| pbjson_types::Empty {})
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        self.tell(request, |told, request| {
            let mut token = request.token.unwrap();
            token.name = format!("{}/tokens/0199-ab", request.parent);
            told.tokens.push(token.clone());
            pb::CreateTokenResponse { token: Some(token), secret: SECRET.to_owned() }
        })
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        self.tell(request, |told, _| pb::ListTokensResponse {
            tokens: told.tokens.clone(),
            ..Default::default()
        })
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Result<Response<pb::Token>, Status> {
        self.tell(request, |_, request| pb::Token { name: request.name, ..Default::default() })
    }
}

async fn run(url: &str, line: &str) -> Ran {
    let args: Vec<&str> = line.split(' ').collect();
    lorafleet_with(url, &args, &[("LORAFLEET_TOKEN", "lft_7")]).await
}

#[tokio::test]
async fn quotas_go_out_and_come_back_aligned() {
    let (script, url) = Script::serve().await;
    let made = run(
        &url,
        "tenant create team-a --weight 3 --max-workers 8 --max-worker-hours 1.5 --max-stored-bytes 5GB",
    );
    assert_eq!(made.await.code, 0);
    let expected = pb::Tenant {
        name: "tenants/team-a".into(),
        weight: 3.0,
        max_workers: Some(8),
        max_worker_seconds: Some(5400),
        max_stored_bytes: Some(5_000_000_000),
        ..Default::default()
    };
    assert_eq!(script.0.lock().unwrap().tenants, [expected]);
    let listed = run(&url, "tenant list").await;
    assert_eq!(
        listed.stdout,
        "TENANT  WEIGHT  WORKERS  QUEUED  WORKER TIME   STORED  AGE\n\
         team-a       3        8          1.5 h in 0s  5.00 GB\n"
    );

    assert_eq!(run(&url, "tenant update team-a --max-workers none --window 1d").await.code, 0);
    let update = script.0.lock().unwrap().updates.pop().unwrap();
    assert_eq!(update.update_mask.unwrap().paths, ["max_workers", "window_seconds"]);
    let tenant = update.tenant.unwrap();
    assert_eq!((tenant.max_workers, tenant.window_seconds), (None, 86_400));
    let nothing = run(&url, "tenant update team-a").await;
    assert_eq!(nothing.code, 2, "{}", nothing.stderr);
    assert_eq!(run(&url, "tenant delete team-a").await.stdout, "tenants/team-a is deleted\n");
    assert!(script.0.lock().unwrap().shown.iter().all(|shown| shown.as_deref() == Some("Bearer lft_7")));
}

#[tokio::test]
async fn a_secret_is_printed_alone_and_a_refusal_has_its_code() {
    let (script, url) = Script::serve().await;
    let made = run(&url, "token create team-a --role submitter --description nightly").await;
    assert_eq!((made.code, made.stdout), (0, format!("{SECRET}\n")));
    assert!(made.stderr.contains("team-a/0199-ab (submitter)"), "{}", made.stderr);
    let listed = run(&url, "token list").await.stdout;
    assert_eq!(
        listed,
        "TOKEN           ROLE       VALID  AGE  DESCRIPTION\nteam-a/0199-ab  submitter  yes         nightly\n"
    );
    assert_eq!(run(&url, "token revoke team-a/0199-ab").await.stdout, "team-a/0199-ab is revoked\n");
    // What a command is about is no token to show.
    assert!(script.0.lock().unwrap().shown.iter().all(|shown| shown.as_deref() == Some("Bearer lft_7")));
    let refused = run(&url, "tenant show team-a").await;
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains("needs the role admin"), "{}", refused.stderr);
}
