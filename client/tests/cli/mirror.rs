//! A mirror of the hub on this machine: one model, the hub's paths, and whatever answer a test wants.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use lorafleet_spec::digest::sha256_hex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// The commit that `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One model behind the hub's API.
#[derive(Clone)]
pub struct Mirror {
    /// Its URL, for HF_ENDPOINT.
    pub url: String,
    shared: Arc<Shared>,
}

/// What a request is answered with instead: its status and `x-error-code`.
type Refusal = Option<(u16, &'static str)>;

struct Shared {
    folder: PathBuf,
    id: String,
    /// The token that it wants.
    token: Option<String>,
    refusal: Mutex<Refusal>,
    /// The first answer with a body of this file ends in the middle.
    broken: Mutex<Option<String>>,
    requests: Mutex<Vec<String>>,
}

impl Mirror {
    /// Serves the files of a folder as the model `id`.
    pub async fn start(folder: PathBuf, id: &str, token: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            folder,
            id: id.to_owned(),
            token: token.map(str::to_owned),
            refusal: Mutex::default(),
            broken: Mutex::default(),
            requests: Mutex::default(),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, serving.clone()));
            }
        });
        Self { url, shared }
    }

    /// Answers every request so from now on.
    pub fn refuse(&self, refusal: Refusal) {
        *self.shared.refusal.lock().unwrap() = refusal;
    }

    /// Breaks off the next answer with this file.
    pub fn break_off(&self, file: &str) {
        *self.shared.broken.lock().unwrap() = Some(file.to_owned());
    }

    /// Paths that were asked for since the last time, with the first byte that was wanted.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }
}

async fn answer(stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut path, mut token, mut from) = (String::new(), None, 0usize);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap().to_owned();
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
            "range" => from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
            _ => {}
        }
    }
    shared.requests.lock().unwrap().push(match from {
        0 => path.clone(),
        from => format!("{path} from {from}"),
    });
    let (status, code, body, promised) = respond(&shared, &path, token, from);
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {promised}\r\nx-error-code: {code}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    Ok(())
}

fn respond(
    shared: &Shared,
    path: &str,
    token: Option<String>,
    from: usize,
) -> (u16, &'static str, Vec<u8>, usize) {
    let empty = |status, code| (status, code, Vec::new(), 0);
    if let Some((status, code)) = *shared.refusal.lock().unwrap() {
        return empty(status, code);
    }
    if shared.token.is_some() && token != shared.token {
        return empty(401, "GatedRepo");
    }
    let id = &shared.id;
    if path.starts_with(&format!("/api/models/{id}/revision/")) {
        let revision = path.split("/revision/").nth(1).unwrap().split('?').next().unwrap();
        if ![COMMIT, "main", "refs%2Fpr%2F1"].contains(&revision) {
            return empty(404, "RevisionNotFound");
        }
        let body = listing(shared);
        return (200, "", body.clone(), body.len());
    }
    let Some(name) = path.strip_prefix(&format!("/{id}/resolve/{COMMIT}/")) else {
        return empty(404, "RepoNotFound");
    };
    let body = std::fs::read(shared.folder.join(name)).unwrap()[from..].to_vec();
    let promised = body.len();
    let status = if from > 0 { 206 } else { 200 };
    let mut broken = shared.broken.lock().unwrap();
    if broken.as_deref() == Some(name) {
        *broken = None;
        return (status, "", body[..promised / 2].to_vec(), promised);
    }
    (status, "", body, promised)
}

/// The files, the weights as the hub lists large ones.
fn listing(shared: &Shared) -> Vec<u8> {
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let (name, bytes) =
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
        let blob = &sha256_hex(&bytes)[..40];
        if name.ends_with(".safetensors") {
            let lfs =
                serde_json::json!({"sha256": sha256_hex(&bytes), "size": bytes.len(), "pointerSize": 134});
            serde_json::json!({"rfilename": name, "blobId": blob, "size": bytes.len(), "lfs": lfs})
        } else {
            serde_json::json!({"rfilename": name, "blobId": blob, "size": bytes.len()})
        }
    };
    let siblings: Vec<_> = std::fs::read_dir(&shared.folder).unwrap().map(file).collect();
    let id = &shared.id;
    serde_json::json!({"id": id, "sha": COMMIT, "siblings": siblings}).to_string().into_bytes()
}
