//! An S3 server over a directory: a real protocol between the processes and their store, with faults on demand.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, task::JoinHandle};

/// The bucket that exists from the start.
pub const BUCKET: &str = "lorafleet";
const ACCESS_KEY: &str = "lorafleet-test";
const SECRET_KEY: &str = "lorafleet-test-secret";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum S3Fault {
    /// Nothing.
    #[default]
    None,
    /// Each request waits first.
    Slow(Duration),
    /// Each request gets this status, and is not done.
    Status(u16),
    /// A body that is read breaks off in its middle.
    HalfRead,
    /// The connection closes in the middle of a body that is written.
    HalfWrite,
    /// A request that writes is done, and the connection closes before the answer.
    LostSuccess,
}

/// The server's present fault, and how many requests have met one.
#[derive(Debug, Default)]
pub struct Faults {
    fault: Mutex<S3Fault>,
    met: AtomicU64,
}

impl Faults {
    /// From now on.
    pub fn set(&self, fault: S3Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Requests that met a fault.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    fn now(&self) -> S3Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self) {
        self.met.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running server; stops when dropped.
pub struct S3 {
    address: SocketAddr,
    faults: Arc<Faults>,
    accept: JoinHandle<()>,
}

impl S3 {
    /// Serves `dir` on loopback, with one empty bucket.
    pub async fn start(dir: &Path) -> Result<S3> {
        S3::start_at(Ipv4Addr::LOCALHOST.into(), dir).await
    }

    /// Serves `dir` on an address of this machine.
    pub async fn start_at(ip: IpAddr, dir: &Path) -> Result<S3> {
        fs::create_dir_all(dir.join(BUCKET))?;
        let files = FileSystem::new(dir).map_err(|e| anyhow!("s3s-fs: {e:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let faults = Arc::new(Faults::default());
        let accept = tokio::spawn(accept(listener, service, Arc::clone(&faults)));
        Ok(S3 { address, faults, accept })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The environment that lets a process reach this server.
    pub fn env(&self) -> Vec<(String, String)> {
        S3::env_at(self.address)
    }

    /// The environment that lets a process reach the server at another address, as through a proxy.
    pub fn env_at(address: SocketAddr) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, faults: Arc<Faults>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&faults), request));
            // A client that goes away mid-request is no failure of the server.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

async fn answer(
    service: S3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> Result<Response<Body>, AnyError> {
    let fault = faults.now();
    let writes = request.method() != Method::GET && request.method() != Method::HEAD;
    match fault {
        S3Fault::Slow(time) => {
            faults.meet();
            tokio::time::sleep(time).await;
        }
        S3Fault::Status(status) => {
            faults.meet();
            return refusal(status);
        }
        S3Fault::HalfWrite if writes && !request.body().is_end_stream() => {
            faults.meet();
            return Err(half_read(request).await);
        }
        _ => {}
    }
    let reads = request.method() == Method::GET;
    let response = service.call(request.map(Body::from)).await?;
    match fault {
        S3Fault::HalfRead if reads => {
            faults.meet();
            half(response).await
        }
        S3Fault::LostSuccess if writes && response.status().is_success() => {
            faults.meet();
            Err("the answer is lost".into())
        }
        _ => Ok(response),
    }
}

fn refusal(status: u16) -> Result<Response<Body>, AnyError> {
    let code = if status == 503 { "SlowDown" } else { "InternalError" };
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>chaos</Message></Error>");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

/// Reads half of a request's body, and gives up.
async fn half_read(mut request: Request<Incoming>) -> AnyError {
    let whole = request.body().size_hint().exact().unwrap_or(0);
    let mut read = 0;
    while read * 2 < whole {
        match request.body_mut().frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => break,
        }
    }
    "the connection closes in the middle".into()
}

/// The answer with half of its body: the headers promise all of it.
async fn half(response: Response<Body>) -> Result<Response<Body>, AnyError> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let first = bytes.slice(..bytes.len() / 2);
    let broken = std::io::Error::other("the body breaks off");
    let frames: Vec<Result<Frame<Bytes>, std::io::Error>> = vec![Ok(Frame::data(first)), Err(broken)];
    let body = StreamBody::new(tokio_stream::iter(frames));
    Ok(Response::from_parts(head, Body::http_body_unsync(body)))
}
