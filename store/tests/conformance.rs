//! What every store must do, whatever is behind it: one suite over memory, a folder and the S3 protocol.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Backend, backends};
use futures::future::join_all;
use lorafleet_store::{Digest, Path, Put, StoreError};

const LIMIT: u64 = 64 << 20;

/// Not all alike, so that misplaced parts show.
fn contents(size: usize) -> Bytes {
    (0..size).map(|i| (i * 31 + i / 251) as u8).collect::<Vec<u8>>().into()
}

fn is_missing<T: std::fmt::Debug>(result: Result<T, StoreError>) -> bool {
    result.unwrap_err().is_not_found()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_store_passes() {
    for backend in backends().await {
        let name = backend.name;
        // Each in a task, so that a failure names its store.
        let suite = tokio::spawn(async move {
            reads_what_was_written(&backend).await;
            puts_once(&backend).await;
            streams(&backend).await;
            lists_and_deletes(&backend).await;
            downloads_with_digest(&backend).await;
            backend.store.probe_writable().await.unwrap();
            assert_eq!(backend.store.list(&Path::from("probes")).await.unwrap(), []);
        });
        suite.await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

async fn reads_what_was_written(Backend { store, .. }: &Backend) {
    let path = Path::from("reads/object");
    assert!(is_missing(store.get(&path, LIMIT).await));
    assert!(is_missing(store.read(&path).await));
    assert_eq!(store.size(&path).await.unwrap(), None);
    // None, little, one range, one part, several parts.
    for size in [0, 5, 4 << 20, (8 << 20) + 1, (20 << 20) + 7] {
        let written = contents(size);
        store.put(&path, written.clone()).await.unwrap(); // over the one before
        assert_eq!(store.size(&path).await.unwrap(), Some(size as u64));
        assert_eq!(Digest::of(&store.get(&path, LIMIT).await.unwrap()), Digest::of(&written), "{size}");
    }
    let error = store.get(&path, 100).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: 100, .. }), "{error}");
}

async fn puts_once(Backend { store, .. }: &Backend) {
    let path = Path::from("once/object");
    assert_eq!(store.put_if_absent(&path, contents(3)).await.unwrap(), Put::Written);
    assert_eq!(store.put_if_absent(&path, contents(4)).await.unwrap(), Put::Existed);
    assert_eq!(store.get(&path, LIMIT).await.unwrap(), contents(3));
    store.delete(&path).await.unwrap();
    assert_eq!(store.put_if_absent(&path, contents(4)).await.unwrap(), Put::Written);
}

async fn streams(Backend { store, .. }: &Backend) {
    for (name, size) in [("small", 10), ("large", (17 << 20) + 3)] {
        let path = Path::from(format!("streams/{name}"));
        let written = contents(size);
        let mut upload = store.upload(&path);
        for piece in written.chunks(1 << 20) {
            upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(store.size(&path).await.unwrap(), None, "an unfinished upload is not to be seen");
        upload.finish().await.unwrap();
        let mut reader = store.read(&path).await.unwrap();
        let mut read = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            assert!(bytes.len() <= 4 << 20);
            read.extend_from_slice(&bytes);
        }
        assert_eq!(Digest::of(&read), Digest::of(&written), "{name}");
    }
    let dropped = Path::from("streams/dropped");
    let mut upload = store.upload(&dropped);
    upload.write(contents(9 << 20)).await.unwrap();
    drop(upload);
    assert_eq!(store.size(&dropped).await.unwrap(), None);
}

async fn lists_and_deletes(Backend { store, .. }: &Backend) {
    let folder = Path::from("lists");
    assert_eq!(store.list(&folder).await.unwrap(), []);
    let names = ["lists/b", "lists/a/x", "lists/a/y", "lists2/z"].map(Path::from);
    for path in &names {
        store.put(path, contents(2)).await.unwrap();
    }
    let listed = store.list(&folder).await.unwrap();
    assert!(listed.iter().all(|object| object.size == 2));
    let paths: Vec<&str> = listed.iter().map(|object| object.path.as_ref()).collect();
    assert_eq!(paths, ["lists/a/x", "lists/a/y", "lists/b"]);
    store.delete(&names[1]).await.unwrap();
    store.delete(&names[1]).await.unwrap(); // again: no error
    assert_eq!(store.list(&folder).await.unwrap().len(), 2);
}

async fn downloads_with_digest(Backend { store, .. }: &Backend) {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (Path::from("downloads/object"), dir.path().join("object"));
    let written = contents((4 << 20) + 5);
    store.put(&path, written.clone()).await.unwrap();
    let error = store.download(&path, &Digest::of(b"other"), &file).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let size = store.download(&path, &Digest::of(&written), &file).await.unwrap();
    assert_eq!(size, written.len() as u64);
    assert_eq!(std::fs::read(&file).unwrap(), written);
}

/// Of several writers of one place exactly one wins. Not over s3s-fs, which checks and then writes; real S3 checks when
/// it writes.
#[tokio::test(flavor = "multi_thread")]
async fn one_writer_wins() {
    for Backend { name, store, _keep } in backends().await.into_iter().filter(|backend| backend.name != "s3")
    {
        for round in 0..20 {
            let path = Path::from(format!("race/{round}"));
            let writers = (0..8).map(|writer| store.put_if_absent(&path, contents(writer + 1)));
            let results = join_all(writers).await;
            let winners: Vec<usize> = (0..8).filter(|i| matches!(results[*i], Ok(Put::Written))).collect();
            assert_eq!(winners.len(), 1, "{name}");
            assert_eq!(store.get(&path, LIMIT).await.unwrap(), contents(winners[0] + 1), "{name}");
            assert!(results.iter().all(Result::is_ok), "{name}");
        }
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_written_says_so() {
    // Nobody listens there, and the connection is refused at once.
    let variables = [
        ("AWS_ENDPOINT", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = lorafleet_store::Store::open_with("s3://bucket/prefix", variables).unwrap();
    let error = store.probe_writable().await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
}
