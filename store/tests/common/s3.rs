//! A real S3 protocol server on loopback, over a temporary folder, that answers badly on command.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lorafleet_store::Store;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

const BUCKET: &str = "fleet";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// What happens to a request that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this status, and nothing is done.
    Status(u16),
    /// It is done after so long.
    Slow(Duration),
    /// It is done, and the connection ends without an answer.
    Lost,
    /// All is well.
    None,
}

type Faults = Arc<Mutex<VecDeque<Fault>>>;

/// Stops when dropped.
pub struct Server {
    address: std::net::SocketAddr,
    faults: Faults,
    task: tokio::task::JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Faults::default();
        let planned = faults.clone();
        let task = tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, planned) = (service.clone(), planned.clone());
                let answer = service_fn(move |request| answer(service.clone(), planned.clone(), request));
                let connection = server.serve_connection(TokioIo::new(socket), answer).into_owned();
                tokio::spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Server { address, faults, task, folder }
    }

    /// The next requests that write meet these, one each.
    pub fn disturb(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Faults that no request has met yet.
    pub fn faults_left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    /// Files that the server keeps, those of unfinished uploads included.
    pub fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path().join(BUCKET)).unwrap().count()
            + std::fs::read_dir(self.folder.path()).unwrap().count()
            - 1
    }

    /// The store at a prefix of the bucket, opened as a user would: by URL and environment variables.
    pub fn store(&self, prefix: &str) -> Store {
        let endpoint = format!("http://{}", self.address);
        let variables = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Store::open_with(&format!("s3://{BUCKET}/{prefix}"), variables).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    service: S3Service,
    faults: Faults,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<s3s::HttpResponse, Box<dyn std::error::Error + Send + Sync>> {
    let writes = request.method() == hyper::Method::PUT || request.method() == hyper::Method::POST;
    let fault = if writes { faults.lock().unwrap().pop_front() } else { None };
    match fault {
        Some(Fault::Status(status)) => {
            return Ok(hyper::Response::builder().status(status).body(s3s::Body::empty())?);
        }
        Some(Fault::Slow(pause)) => tokio::time::sleep(pause).await,
        Some(Fault::Lost | Fault::None) | None => {}
    }
    let answer = service.call(request.map(s3s::Body::from)).await?;
    if fault == Some(Fault::Lost) { Err("the connection ends".into()) } else { Ok(answer) }
}
