//! An S3 server on loopback, over a directory: a real protocol between the processes and their store.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Result, anyhow};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, task::JoinHandle};

/// The bucket that exists from the start.
pub const BUCKET: &str = "lorafleet";
const ACCESS_KEY: &str = "lorafleet-test";
const SECRET_KEY: &str = "lorafleet-test-secret";

/// A running server; stops when dropped.
pub struct S3 {
    address: SocketAddr,
    accept: JoinHandle<()>,
}

impl S3 {
    /// Serves `dir`, with one empty bucket.
    pub async fn start(dir: &Path) -> Result<S3> {
        fs::create_dir_all(dir.join(BUCKET))?;
        let files = FileSystem::new(dir).map_err(|e| anyhow!("s3s-fs: {e:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accept = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that goes away mid-request is no failure of the server.
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Ok(S3 { address, accept })
    }

    /// The environment that lets a process reach this server.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
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
