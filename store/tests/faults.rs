//! Faults of a store that are survived: each is met by every write of a checkpoint in turn.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::faulty::{Faulty, When};
use common::s3::{Fault, Server};
use common::{GENERATION, draft, files, id, job, quick};
use lorafleet_store::{
    Contents, FileName, Path, Retry, Store, list_checkpoints, read_checkpoint, write_checkpoint,
};
use object_store::memory::InMemory;

const SLOW: Fault = Fault::Slow(Duration::from_millis(100));

/// The fault meets the write of this number.
fn at(number: usize, fault: Fault) -> impl Iterator<Item = Fault> {
    std::iter::repeat_n(Fault::None, number).chain([fault])
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_lost_answers_and_slowness_are_survived_at_every_write() {
    let server = Server::start().await;
    let mut step = 0;
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Lost, SLOW] {
        for number in 0..4 {
            step += 1;
            let (store, draft) = (server.store("faults"), draft(step, 1, GENERATION));
            server.disturb(at(number, fault));
            let written = write_checkpoint(&store, &draft, &files("x")).await.unwrap();
            assert_eq!(server.faults_left(), 0, "{fault:?} at write {number}");
            let (read, contents) = read_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
            assert_eq!((read, contents), (written, files("x")), "{fault:?} at write {number}");
        }
    }
}

/// Beginning, parts and end of an upload in parts.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_survives_faults_in_its_parts() {
    let server = Server::start().await;
    let contents: Bytes = (0..(17 << 20)).map(|i: usize| (i * 31 + i / 251) as u8).collect::<Vec<_>>().into();
    let large: BTreeMap<FileName, Bytes> = [("model.safetensors".parse().unwrap(), contents)].into();
    let mut step = 0;
    // Five writes and the manifest's.
    for (number, fault) in [
        (0, Fault::Status(503)),
        (1, Fault::Status(500)),
        (2, SLOW),
        (3, Fault::Lost),
        (4, Fault::Status(500)),
        (5, Fault::Lost),
    ] {
        step += 1;
        let (store, draft) = (server.store("parts").with_retry(quick(3)), draft(step, 1, GENERATION));
        server.disturb(at(number, fault));
        write_checkpoint(&store, &draft, &large).await.unwrap();
        assert_eq!(server.faults_left(), 0, "{fault:?} at write {number}");
        let (_, read) = read_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
        assert!(read == large, "{fault:?} at write {number}");
    }
}

/// Parts of which no object becomes are not left behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_leaves_no_parts() {
    let server = Server::start().await;
    let contents = Counted { pieces: 20, alive: Arc::default(), most: Arc::default() };
    // Its beginning and its first part are taken, the others are not.
    server.disturb([Fault::None, Fault::None]);
    server.disturb(std::iter::repeat_n(Fault::Status(403), 2));
    let (store, path) = (server.store("").with_retry(Retry::never()), Path::from("large"));
    store.put_contents(&path, &contents).await.unwrap_err();
    for _ in 0..1000 {
        if server.files() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} files are left", server.files());
}

/// Of a file that the store cut in half nobody says that it is there; the next try writes it again.
#[tokio::test]
async fn half_an_object_is_noticed() {
    for number in 0..3 {
        let memory = Arc::new(InMemory::new());
        let store = Store::over(Faulty::new(memory, number, When::Half, false), Retry::never());
        let draft = draft(10, 1, GENERATION);
        let error = write_checkpoint(&store, &draft, &files("x")).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("bytes it has"), "{error}");
        assert_eq!(list_checkpoints(&store, &job()).await.unwrap(), []);
        write_checkpoint(&store, &draft, &files("x")).await.unwrap();
        read_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
    }
    // Half a manifest is none that can be used.
    let store = Store::over(Faulty::new(Arc::new(InMemory::new()), 3, When::Half, false), Retry::never());
    write_checkpoint(&store, &draft(10, 1, GENERATION), &files("x")).await.unwrap();
    let error = read_checkpoint(&store, &job(), &id(&draft(10, 1, GENERATION))).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

/// Pieces that count how many of them are in memory.
struct Counted {
    pieces: usize,
    alive: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Piece(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

const MIB: usize = 1 << 20;

impl Contents for Counted {
    fn size(&self) -> u64 {
        (self.pieces * MIB) as u64
    }

    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_> {
        Box::new((0..self.pieces).map(|number| {
            let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(alive, Ordering::SeqCst);
            Bytes::from_owner(Piece(vec![number as u8; MIB], self.alive.clone()))
        }))
    }
}

/// A slow store does not make a large file pile up in memory.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_whatever_the_size() {
    let server = Server::start().await;
    server.disturb(std::iter::repeat_n(Fault::Slow(Duration::from_millis(20)), 8));
    let contents = Counted { pieces: 96, alive: Arc::default(), most: Arc::default() };
    let (store, path) = (server.store("memory"), Path::from("large"));
    let digest = store.put_contents(&path, &contents).await.unwrap();
    assert_eq!(store.size(&path).await.unwrap(), Some(96 << 20));
    assert_eq!(lorafleet_store::Digest::of(&store.get(&path, 1 << 30).await.unwrap()), digest);
    let most = contents.most.load(Ordering::SeqCst);
    assert!(most <= 40, "{most} MiB of 96 were in memory at once");
    assert_eq!(contents.alive.load(Ordering::SeqCst), 0);
}
