//! Requests to the hub: what a repository holds, and its files, begun again where they broke off.

use std::{
    fs::{self, File, OpenOptions},
    future::Future,
    io::Write as _,
    path::Path,
    time::Duration,
};

use lorafleet_spec::{base::HubId, digest};
use reqwest::{Response, StatusCode, header};

use super::{HubConfig, HubError, listing::Listing, listing::RemoteFile};
use crate::{
    artifacts::Progress,
    error::root_cause,
    retry::{Backoff, jitter},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A download that brings nothing for this long has failed.
const STALL: Duration = Duration::from_secs(60);
/// A request that failed in passing is made so many times.
const TRIES: u32 = 5;
/// Waits between them.
const FIRST_WAIT: Duration = Duration::from_millis(300);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a listing; a repository of thousands of files has far fewer.
const MAX_LISTING: usize = 32 << 20;

/// A client of one hub.
#[derive(Debug)]
pub(super) struct Http {
    endpoint: String,
    token: Option<String>,
    client: reqwest::Client,
}

impl Http {
    pub fn new(config: &HubConfig) -> Result<Self, HubError> {
        let agent = concat!("lorafleet/", env!("CARGO_PKG_VERSION"));
        // A redirect to another host (where large files lie) does not carry the token: reqwest drops it.
        let client = reqwest::Client::builder()
            .user_agent(agent)
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(STALL)
            .build()
            .map_err(|error| HubError::Unreachable {
                endpoint: config.endpoint.clone(),
                reason: root_cause(&error),
            })?;
        Ok(Self { endpoint: config.endpoint.clone(), token: config.token.clone(), client })
    }

    /// What a repository holds at a revision.
    pub async fn list(&self, id: &HubId) -> Result<Listing, HubError> {
        let revision = id.revision().replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, id.id);
        let answer = self.patient(|| self.text(id, &url)).await?;
        Listing::parse(&answer)
            .ok_or_else(|| HubError::Answer { url, reason: "something that is no list of files".to_owned() })
    }

    /// Fetches a file to `path`, which appears when all of it is here and has the digest that the hub told.
    pub async fn download(
        &self,
        id: &HubId,
        commit: &str,
        file: &RemoteFile,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.id, file.name);
        let part = path.with_file_name(format!("{}.{}.incomplete", file_name(path), std::process::id()));
        let fetched = self.patient(|| self.append(id, &url, &part, progress)).await;
        let checked = fetched.and_then(|()| check(id, file, &part));
        match checked {
            Ok(()) => fs::rename(&part, path).map_err(HubError::local(path)),
            Err(error) => {
                // What is left of a failed try is of no use to another process.
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    async fn patient<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, HubError>
    where
        F: Future<Output = Result<T, HubError>>,
    {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        for _ in 1..TRIES {
            match request().await {
                Err(error) if error.may_pass() => tokio::time::sleep(backoff.wait(jitter())).await,
                other => return other,
            }
        }
        request().await
    }

    async fn text(&self, id: &HubId, url: &str) -> Result<Vec<u8>, HubError> {
        let mut answer = self.ask(id, url, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_LISTING {
                let reason = format!("more than {MAX_LISTING} bytes");
                return Err(HubError::Answer { url: url.to_owned(), reason });
            }
        }
        Ok(bytes)
    }

    /// Gets what a partial file lacks.
    async fn append(&self, id: &HubId, url: &str, part: &Path, progress: &Progress) -> Result<(), HubError> {
        let have = fs::metadata(part).map_or(0, |metadata| metadata.len());
        let mut answer = self.ask(id, url, have).await?;
        let mut file =
            OpenOptions::new().create(true).append(true).open(part).map_err(HubError::local(part))?;
        let mut written = have;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            file = File::create(part).map_err(HubError::local(part))?;
            written = 0;
        }
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            file.write_all(&chunk).map_err(HubError::local(part))?;
            written += chunk.len() as u64;
            progress(written);
        }
        file.sync_all().map_err(HubError::local(part))
    }

    /// Makes a request, from a byte on, and turns what is no success into an error that says what to do.
    async fn ask(&self, id: &HubId, url: &str, from: u64) -> Result<Response, HubError> {
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let code =
            answer.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        Err(self.refused(id, url, status, code))
    }

    fn refused(&self, id: &HubId, url: &str, status: StatusCode, code: &str) -> HubError {
        let (id, endpoint, has_token) = (id.clone(), self.endpoint.clone(), self.token.is_some());
        let number = status.as_u16();
        match (number, code) {
            (_, "GatedRepo") => HubError::Gated { id, status: number, endpoint },
            (_, "RevisionNotFound") => HubError::NoRevision { id, endpoint },
            // Without a token, the hub says 401 of what does not exist too.
            (404, "RepoNotFound" | "") => HubError::NoModel { id, has_token, endpoint },
            (401 | 403, _) => HubError::Denied { id, status: number, has_token, endpoint },
            (429 | 500..=599, _) => HubError::Busy { id, status: number, has_token, endpoint },
            _ => HubError::Answer { url: url.to_owned(), reason: status.to_string() },
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), reason: root_cause(error) }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Whether a file is what the hub promised.
fn check(id: &HubId, file: &RemoteFile, part: &Path) -> Result<(), HubError> {
    let damaged = |reason| HubError::Damaged { id: id.clone(), file: file.name.clone(), reason };
    let size = fs::metadata(part).map_err(HubError::local(part))?.len();
    if let Some(wanted) = file.size.filter(|wanted| *wanted != size) {
        return Err(damaged(format!("it has {size} bytes, not {wanted}")));
    }
    if let Some(wanted) = file.sha256() {
        let (_, found) = digest::hash_file(part).map_err(HubError::local(part))?;
        if found != wanted {
            return Err(damaged(format!("its sha256 is {found}, not {wanted}")));
        }
    }
    Ok(())
}
