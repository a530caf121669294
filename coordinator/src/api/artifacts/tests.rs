//! The service over a real loopback connection.

use bytes::Bytes;
use lorafleet_store::{Digest, Draft, Fence, FileName, Sums, write_checkpoint};
use pb::artifacts_client::ArtifactsClient;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::*;
use crate::{access::Gate, tokens::Keys};

const LINE: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

struct Fixture {
    client: ArtifactsClient<Channel>,
    store: Store,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn fixture() -> Fixture {
    let store = Store::open("memory://").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Nobody is asked: whoever shows no token sees everything.
    let pool = PgPool::connect_lazy("postgres://nowhere").unwrap();
    let gate = Gate::new(Keys::new(pool.clone()), false);
    let service = ArtifactsService::new(store.clone(), pool).into_server();
    let serving = Server::builder().layer(gate).add_service(service);
    let server = tokio::spawn(async move {
        serving.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    Fixture { client: ArtifactsClient::connect(url).await.unwrap(), store, server }
}

fn dataset(digest: &Digest) -> pb::ArtifactRef {
    pb::ArtifactRef { place: Some(pb::artifact_ref::Place::DatasetSha256(digest.to_string())) }
}

fn base_file(base: &Digest, name: &str, sha256: &str) -> pb::ArtifactRef {
    let file = pb::BaseFile { base_sha256: base.to_string(), name: name.into(), sha256: sha256.into() };
    pb::ArtifactRef { place: Some(pb::artifact_ref::Place::BaseFile(file)) }
}

fn header(artifact: pb::ArtifactRef, size_bytes: u64) -> pb::upload_file_request::Part {
    pb::upload_file_request::Part::Header(pb::UploadHeader {
        artifact: Some(artifact),
        size_bytes,
        data: None,
    })
}

fn chunks(bytes: &[u8]) -> impl Iterator<Item = pb::upload_file_request::Part> {
    let chunks: Vec<Vec<u8>> = bytes.chunks(CHUNK).map(<[u8]>::to_vec).collect();
    chunks.into_iter().map(pb::upload_file_request::Part::Chunk)
}

impl Fixture {
    async fn send(
        &mut self,
        parts: impl IntoIterator<Item = pb::upload_file_request::Part>,
    ) -> Result<pb::UploadFileResponse, Status> {
        let parts: Vec<_> =
            parts.into_iter().map(|part| pb::UploadFileRequest { part: Some(part) }).collect();
        Ok(self.client.upload_file(tokio_stream::iter(parts)).await?.into_inner())
    }

    async fn upload(&mut self, to: pb::ArtifactRef, bytes: &[u8]) -> Result<pb::UploadFileResponse, Status> {
        self.send([header(to, bytes.len() as u64)].into_iter().chain(chunks(bytes))).await
    }

    async fn present(&mut self, artifact: pb::ArtifactRef) -> bool {
        let request = pb::StatArtifactRequest { artifact: Some(artifact) };
        self.client.stat_artifact(request).await.unwrap().into_inner().present
    }

    async fn download(&mut self, artifact: pb::ArtifactRef) -> Result<Vec<u8>, Status> {
        use pb::download_file_response::Part;
        let request = pb::DownloadFileRequest { artifact: Some(artifact) };
        let mut stream = self.client.download_file(request).await?.into_inner();
        let Some(Part::Header(header)) = stream.message().await?.unwrap().part else { panic!("no header") };
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            let Some(Part::Chunk(chunk)) = message.part else { panic!("no chunk") };
            assert!(chunk.len() <= CHUNK);
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!(bytes.len() as u64, header.size_bytes);
        Ok(bytes)
    }
}

fn wrong_field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    status.get_error_details().bad_request().unwrap().field_violations[0].field.clone()
}

#[tokio::test]
async fn a_data_set_goes_in_once_and_comes_out() {
    let mut at = fixture().await;
    let lines = (LINE.to_owned() + "\n").repeat(30_000); // some chunks, and more than one read
    let digest = Digest::of(lines.as_bytes());
    assert!(!at.present(dataset(&digest)).await);
    let first = at.upload(dataset(&digest), lines.as_bytes()).await.unwrap();
    assert_eq!(first, pb::UploadFileResponse { already_present: false, examples: 30_000 });
    assert!(at.present(dataset(&digest)).await);
    assert!(at.upload(dataset(&digest), lines.as_bytes()).await.unwrap().already_present);
    assert_eq!(at.download(dataset(&digest)).await.unwrap(), lines.as_bytes());
    let missing = at.download(dataset(&Digest::of(b"other"))).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn bad_data_is_refused_and_leaves_nothing() {
    let mut at = fixture().await;
    let lines = format!("{LINE}\n{LINE}\n{{\"texts\": 1}}\n");
    let digest = Digest::of(lines.as_bytes());
    let status = at.upload(dataset(&digest), lines.as_bytes()).await.unwrap_err();
    assert_eq!(wrong_field(&status), "chunk");
    assert!(status.message().contains("line 3 "), "{status}");
    let other = at.upload(dataset(&digest), LINE.as_bytes()).await.unwrap_err();
    assert_eq!(other.code(), Code::DataLoss, "{other}");
    let blank = at.upload(dataset(&Digest::of(b"\n")), b"\n").await.unwrap_err();
    assert!(blank.message().contains("empty"), "{blank}");
    assert!(!at.present(dataset(&digest)).await);
}

#[tokio::test]
async fn the_protocol_is_enforced() {
    let mut at = fixture().await;
    let (bytes, digest) = (LINE.as_bytes(), Digest::of(LINE.as_bytes()));
    let to = || dataset(&digest);
    let size = bytes.len() as u64;
    let no_header = at.send(chunks(bytes)).await.unwrap_err();
    assert_eq!(wrong_field(&no_header), "header");
    let twice = at.send([header(to(), size), header(to(), size)]).await.unwrap_err();
    assert_eq!(wrong_field(&twice), "header");
    for announced in [size - 1, size + 1, 0, u64::MAX] {
        let parts = [header(to(), announced)].into_iter().chain(chunks(bytes));
        let status = at.send(parts).await.unwrap_err();
        assert_eq!(wrong_field(&status), "header.size_bytes", "{announced}");
    }
    let large = pb::upload_file_request::Part::Chunk(vec![b' '; CHUNK + 1]);
    let status = at.send([header(to(), 2 << 20), large]).await.unwrap_err();
    assert_eq!(wrong_field(&status), "chunk");
    let escape = at.upload(base_file(&digest, "../../x", &digest.to_string()), b"x").await.unwrap_err();
    assert_eq!(wrong_field(&escape), "header.artifact.base_file.name");
    assert_eq!(at.store.list(&lorafleet_store::Path::from("")).await.unwrap(), []);
}

fn sums_of(files: &[(&str, &[u8])]) -> Sums {
    let named = |(name, bytes): &(&str, &[u8])| (name.parse::<FileName>().unwrap(), Digest::of(bytes));
    Sums::new(files.iter().map(named).collect()).unwrap()
}

#[tokio::test]
async fn a_base_is_whole_when_its_sums_are_there_and_true() {
    let mut at = fixture().await;
    let weights = vec![7; 5 << 20];
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let sums = sums_of(&files);
    let base = sums.digest();
    let to_sums = || base_file(&base, "SHA256SUMS", "");
    let early = at.upload(to_sums(), sums.to_text().as_bytes()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    assert!(early.message().contains("config.json"), "{early}");
    for (name, bytes) in files {
        let to = base_file(&base, name, &Digest::of(bytes).to_string());
        at.upload(to, bytes).await.unwrap();
    }
    let hidden = at.download(base_file(&base, "config.json", "")).await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound, "not before the base is whole");
    let wrong = at.upload(to_sums(), b"other").await.unwrap_err();
    assert_eq!(wrong.code(), Code::DataLoss, "{wrong}");

    // A file under the base's digest whose own digest is not the listed one.
    let to = base_file(&base, "config.json", &Digest::of(b"[]").to_string());
    at.upload(to, b"[]").await.unwrap();
    let untrue = at.upload(to_sums(), sums.to_text().as_bytes()).await.unwrap_err();
    assert_eq!(untrue.code(), Code::DataLoss, "{untrue}");
    assert!(!at.present(base_file(&base, "config.json", "")).await, "so that it is sent again");

    let config = base_file(&base, "config.json", &Digest::of(b"{}").to_string());
    at.upload(config.clone(), b"{}").await.unwrap();
    at.upload(to_sums(), sums.to_text().as_bytes()).await.unwrap();
    assert!(at.upload(to_sums(), sums.to_text().as_bytes()).await.unwrap().already_present);
    assert!(at.upload(config, b"{}").await.unwrap().already_present);
    assert_eq!(at.download(base_file(&base, "model.safetensors", "")).await.unwrap(), weights);
    let dir = tempfile::tempdir().unwrap();
    lorafleet_store::download_base(&at.store, &base, dir.path()).await.unwrap();
}

#[tokio::test]
async fn checkpoints_come_out_whole_and_never_go_in() {
    let mut at = fixture().await;
    let draft = Draft {
        job: "job-1".parse().unwrap(),
        step: 5,
        fence: Fence { attempt: 1, generation: 1, generation_id: "0123456789abcdef".into() },
        parent: None,
        is_final: true,
        spec_sha256: Digest::of(b"spec"),
        kind: "cpu".into(),
        scale_bits: 36,
    };
    let name: FileName = "adapter_model.safetensors".parse().unwrap();
    let files = [(name.clone(), Bytes::from_static(b"weights"))].into();
    let checkpoint = write_checkpoint(&at.store, &draft, &files).await.unwrap().to_proto();
    let place = |name: &str| {
        let file = pb::CheckpointFileRef { checkpoint: checkpoint.name.clone(), name: name.into() };
        pb::ArtifactRef { place: Some(pb::artifact_ref::Place::CheckpointFile(file)) }
    };
    assert_eq!(at.download(place(name.as_str())).await.unwrap(), b"weights");
    let manifest = at.download(place("manifest.json")).await.unwrap();
    assert_eq!(Digest::of(&manifest).to_string(), checkpoint.manifest_sha256);
    assert_eq!(at.download(place("other.json")).await.unwrap_err().code(), Code::NotFound);
    let refused = at.upload(place(name.as_str()), b"weights").await.unwrap_err();
    assert_eq!(wrong_field(&refused), "header.artifact");
}
