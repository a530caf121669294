//! Checkpoints are whole or not there, wherever their writing is cut off.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::faulty::{Faulty, When};
use common::{GENERATION, backends, draft, files, id, job, quick};
use lorafleet_store::{
    CheckpointId, Digest, Draft, Retry, Store, StoreError, delete_checkpoint, find_checkpoint, layout,
    list_checkpoints, read_checkpoint, write_checkpoint,
};
use object_store::memory::InMemory;

#[tokio::test(flavor = "multi_thread")]
async fn written_read_listed_and_deleted_on_every_store() {
    for backend in backends().await {
        let (store, name) = (&backend.store, backend.name);
        assert_eq!(list_checkpoints(store, &job()).await.unwrap(), [], "{name}");
        let drafts = [draft(100, 2, GENERATION), draft(50, 1, GENERATION), draft(100, 1, "ffffffffffffffff")];
        for draft in &drafts {
            let written = write_checkpoint(store, draft, &files("x")).await.unwrap();
            assert_eq!(write_checkpoint(store, draft, &files("x")).await.unwrap(), written, "{name}: again");
            let (read, contents) = read_checkpoint(store, &job(), written.id()).await.unwrap();
            assert_eq!((read, contents), (written.clone(), files("x")), "{name}");
            assert_eq!(find_checkpoint(store, &job(), written.id()).await.unwrap(), Some(written), "{name}");
        }
        let newest_first = [id(&drafts[0]), id(&drafts[2]), id(&drafts[1])];
        assert_eq!(list_checkpoints(store, &job()).await.unwrap(), newest_first, "{name}");
        delete_checkpoint(store, &job(), &newest_first[0]).await.unwrap();
        delete_checkpoint(store, &job(), &newest_first[0]).await.unwrap();
        assert_eq!(list_checkpoints(store, &job()).await.unwrap(), newest_first[1..], "{name}");
        assert_eq!(store.list(&layout::checkpoint(&job(), &newest_first[0])).await.unwrap(), [], "{name}");
        let gone = read_checkpoint(store, &job(), &newest_first[0]).await.unwrap_err();
        assert!(gone.is_not_found(), "{name}: {gone}");
    }
}

#[tokio::test]
async fn the_api_message_names_every_file() {
    let store = Store::open("memory://").unwrap();
    let draft = Draft { is_final: true, ..draft(7, 1, GENERATION) };
    let message = write_checkpoint(&store, &draft, &files("x")).await.unwrap().to_proto();
    assert_eq!(message.name, "jobs/0192f0c1-job/checkpoints/0000000007-0001-0001-0123456789abcdef");
    assert_eq!((message.step, message.r#final, message.files.len()), (7, true, 3));
    let manifest = store.get(&layout::manifest(&job(), &id(&draft)), 1 << 20).await.unwrap();
    assert_eq!(message.manifest_sha256, Digest::of(&manifest).to_string());
}

/// The process is killed, or the store goes away for good, at each of the four writes: before it takes effect, and
/// after it, untold.
#[tokio::test]
async fn cut_off_anywhere_it_is_whole_or_not_listed() {
    for cut_at in 0..4 {
        for when in [When::Before, When::After] {
            let memory = Arc::new(InMemory::new());
            let dying = Store::over(Faulty::new(memory.clone(), cut_at, when, true), Retry::never());
            let draft = draft(10, 1, GENERATION);
            let error = write_checkpoint(&dying, &draft, &files("x")).await.unwrap_err();
            assert!(error.is_transient(), "{error}");

            let store = Store::over(memory, Retry::never());
            let listed = list_checkpoints(&store, &job()).await.unwrap();
            let whole = cut_at == 3 && when == When::After;
            assert_eq!(listed.len(), usize::from(whole), "write {cut_at}, {when:?}");
            for id in listed {
                read_checkpoint(&store, &job(), &id).await.unwrap();
            }
            // The same writer goes on, or one of its peers does.
            write_checkpoint(&store, &draft, &files("x")).await.unwrap();
            let (_, contents) = read_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
            assert_eq!(contents, files("x"));
        }
    }
}

/// One write fails and the writer tries again: of the manifest, it may meet its own success.
#[tokio::test]
async fn a_cut_connection_is_survived() {
    for cut_at in 0..4 {
        for when in [When::Before, When::After] {
            let faulty = Faulty::new(Arc::new(InMemory::new()), cut_at, when, false);
            let store = Store::over(faulty, quick(3));
            let written = write_checkpoint(&store, &draft(10, 1, GENERATION), &files("x")).await.unwrap();
            read_checkpoint(&store, &job(), written.id()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn another_writer_under_the_same_fence_is_a_conflict() {
    let store = Store::open("memory://").unwrap();
    let draft = draft(10, 1, GENERATION);
    write_checkpoint(&store, &draft, &files("ours")).await.unwrap();
    let error = write_checkpoint(&store, &draft, &files("theirs")).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    let (_, contents) = read_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
    assert_eq!(contents, files("ours"));
}

#[tokio::test]
async fn a_torn_or_damaged_checkpoint_is_refused() {
    let store = Store::open("memory://").unwrap();
    let draft = draft(10, 1, GENERATION);
    let id = id(&draft);
    let file = |name: &str| layout::checkpoint_file(&job(), &id, &name.parse().unwrap());
    for (name, contents) in
        [("optimizer.safetensors", "shorter"), ("adapter_config.json", "adapter_config.json y")]
    {
        write_checkpoint(&store, &draft, &files("x")).await.unwrap();
        store.put(&file(name), contents.into()).await.unwrap();
        let error = read_checkpoint(&store, &job(), &id).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == file(name)), "{error}");
        delete_checkpoint(&store, &job(), &id).await.unwrap();
    }
    write_checkpoint(&store, &draft, &files("x")).await.unwrap();
    store.delete(&file("adapter_model.safetensors")).await.unwrap();
    assert!(read_checkpoint(&store, &job(), &id).await.unwrap_err().is_not_found());
    // A manifest that was copied to another checkpoint's place.
    let manifest = store.get(&layout::manifest(&job(), &id), 1 << 20).await.unwrap();
    let elsewhere = CheckpointId::new(11, &draft.fence).unwrap();
    store.put(&layout::manifest(&job(), &elsewhere), manifest).await.unwrap();
    let error = find_checkpoint(&store, &job(), &elsewhere).await.unwrap_err();
    assert!(matches!(error, StoreError::Manifest { .. }), "{error}");
}

#[tokio::test]
async fn deletion_takes_the_manifest_first() {
    let store = Store::open("memory://").unwrap();
    let draft = draft(10, 1, GENERATION);
    write_checkpoint(&store, &draft, &files("x")).await.unwrap();
    // As if cut off right after its first write.
    store.delete(&layout::manifest(&job(), &id(&draft))).await.unwrap();
    assert_eq!(list_checkpoints(&store, &job()).await.unwrap(), []);
    delete_checkpoint(&store, &job(), &id(&draft)).await.unwrap();
    assert_eq!(store.list(&layout::checkpoints(&job())).await.unwrap(), []);
}

/// Two members of a gang may write the same state one after the other; what they know beside it is not compared.
#[tokio::test]
async fn whoever_writes_the_same_state_gets_the_checkpoint_that_is_there() {
    let store = Store::open("memory://").unwrap();
    let first = draft(10, 2, GENERATION);
    let written = write_checkpoint(&store, &first, &files("x")).await.unwrap();
    let other = Draft {
        parent: Some(CheckpointId::new(5, &draft(5, 1, GENERATION).fence).unwrap()),
        kind: "other".into(),
        ..first.clone()
    };
    assert_eq!(write_checkpoint(&store, &other, &files("x")).await.unwrap(), written);
    for changed in
        [Draft { is_final: true, ..first.clone() }, Draft { spec_sha256: Digest::of(b"y"), ..first }]
    {
        let error = write_checkpoint(&store, &changed, &files("x")).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    }
}

/// Whatever is changed in a manifest, what it lists is refused.
#[tokio::test]
async fn a_tampered_manifest_is_refused() {
    let store = Store::open("memory://").unwrap();
    let draft = draft(10, 1, GENERATION);
    write_checkpoint(&store, &draft, &files("x")).await.unwrap();
    let place = layout::manifest(&job(), &id(&draft));
    let whole = String::from_utf8(store.get(&place, 1 << 20).await.unwrap().to_vec()).unwrap();
    let digest = Digest::of(b"optimizer.safetensors x").to_string();
    let other = Digest::of(b"optimizer.safetensors y").to_string();
    for (text, reason) in [
        (whole.replace(&digest, &other), "sha256"),
        (whole.replace("\"size_bytes\": 23", "\"size_bytes\": 22"), "bytes"),
        (whole.replace("\"next_step\": 11", "\"next_step\": 12"), "next_step"),
        (whole.replace("\"version\": 1", "\"version\": 9"), "newer program"),
        (whole.replace("0192f0c1-job", "0192f0c1-other"), "is that of"),
        (whole[..whole.len() / 2].to_owned(), "cannot be read"),
        (String::new(), "cannot be read"),
    ] {
        assert_ne!(text, whole, "{reason}: nothing was changed");
        store.put(&place, text.into()).await.unwrap();
        let error = read_checkpoint(&store, &job(), &id(&draft)).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert!(!error.is_transient(), "{reason}: the one before it must be tried, not this one again");
    }
}
