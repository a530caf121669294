//! An S3 server that takes so many bytes a second and keeps none of them, in a process of its own.
//!
//! It knows the few requests that a checkpoint is written with. Its time is not the worker's: a real one runs elsewhere.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use tokio::net::TcpListener;

/// The bucket.
const BUCKET: &str = "bench";

/// The server's process; it ends with this.
pub struct Sink {
    process: Child,
    address: SocketAddr,
}

impl Sink {
    /// Starts it: this program again, with `--sink`.
    pub fn start(rate: u64) -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--sink", "--rate", &rate.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the server")?;
        let output = process.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the server says {line:?}"))?;
        Ok(Self { process, address })
    }

    /// The store's URL and the variables that it takes.
    pub fn store(&self) -> (String, Vec<(String, String)>) {
        let variables = [
            ("aws_endpoint", format!("http://{}", self.address)),
            ("aws_access_key_id", "bench".to_owned()),
            ("aws_secret_access_key", "bench".to_owned()),
            ("aws_region", "us-east-1".to_owned()),
            // As over an encrypted connection; encryption itself is not in the figures.
            ("aws_unsigned_payload", "true".to_owned()),
        ];
        (format!("s3://{BUCKET}"), variables.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What the server has been sent.
#[derive(Default)]
struct Taken {
    /// Sizes of the objects.
    objects: BTreeMap<String, u64>,
    /// Bytes of the parts of each upload that is not complete.
    uploads: BTreeMap<String, u64>,
}

struct Server {
    taken: Mutex<Taken>,
    rate: f64,
    /// When the bytes that are on their way are through.
    free: Mutex<Instant>,
}

/// The server's process. Says its address, and never ends by itself.
pub fn serve(rate: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let free = Mutex::new(Instant::now());
        let server = Arc::new(Server { taken: Mutex::default(), rate: rate as f64, free });
        loop {
            let (stream, _) = listener.accept().await?;
            let server = server.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                // A client that goes away is no matter.
                drop(Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await);
            });
        }
    })
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
        let upload = parameter(&query, "uploadId");
        let bytes = self.take(request.into_body()).await;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match (method, upload) {
            (Method::PUT, Some(upload)) => {
                *taken.uploads.entry(upload).or_default() += bytes;
                tagged(String::new())
            }
            (Method::PUT, None) => {
                taken.objects.insert(path, bytes);
                tagged(String::new())
            }
            (Method::POST, Some(upload)) => {
                let size = taken.uploads.remove(&upload).unwrap_or_default();
                taken.objects.insert(path, size);
                tagged("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>".into())
            }
            (Method::POST, None) => {
                let upload = format!("u{}", taken.uploads.len() + taken.objects.len());
                taken.uploads.insert(upload.clone(), 0);
                tagged(format!(
                    "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>k</Key>\
                     <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            (Method::GET, None) if query.contains("list-type=2") => tagged(taken.list()),
            _ => answer(StatusCode::NOT_FOUND, String::new()),
        }
    }

    /// Takes a body at the rate that all writers share; how long it was.
    async fn take(&self, mut body: Incoming) -> u64 {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            bytes += size as u64;
            let through = {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                *free = (*free).max(Instant::now()) + Duration::from_secs_f64(size as f64 / self.rate);
                *free
            };
            // Sleeps are not exact, and each costs time: a little ahead is let pass.
            if through > Instant::now() + Duration::from_millis(20) {
                tokio::time::sleep_until(through.into()).await;
            }
        }
        bytes
    }
}

impl Taken {
    fn list(&self) -> String {
        let bucket = format!("/{BUCKET}/");
        let entries = self.objects.iter().filter_map(|(path, size)| {
            let key = path.strip_prefix(&bucket)?;
            Some(format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
            ))
        });
        let entries: String = entries.collect();
        format!(
            "<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        )
    }
}

fn parameter(query: &str, wanted: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned()).next()
}

fn tagged(text: String) -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::OK, text);
    response.headers_mut().insert("etag", hyper::header::HeaderValue::from_static("\"e\""));
    response
}

fn answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
