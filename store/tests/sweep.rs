//! What unfinished checkpoints leave is collected, and nothing else.

#![allow(clippy::unwrap_used)]

mod common;

use common::{GENERATION, backends, draft, files, id, job};
use lorafleet_store::{CheckpointId, layout, list_checkpoints, sweep_torn, write_checkpoint};

#[tokio::test(flavor = "multi_thread")]
async fn torn_ones_go_and_whole_ones_stay_on_every_store() {
    for backend in backends().await {
        let (store, name) = (&backend.store, backend.name);
        let whole = draft(100, 1, GENERATION);
        write_checkpoint(store, &whole, &files("x")).await.unwrap();
        let torn = [draft(50, 1, GENERATION), draft(150, 1, GENERATION), draft(150, 2, GENERATION)];
        for torn in &torn {
            for (file, contents) in files("x").into_iter().take(2) {
                store.put(&layout::checkpoint_file(&job(), &id(torn), &file), contents).await.unwrap();
            }
        }
        // The one of the second attempt may still be on its way.
        let earlier = |id: &CheckpointId| id.fence().attempt < 2;
        let swept = sweep_torn(store, &job(), earlier).await.unwrap();
        assert_eq!(swept, [id(&torn[0]), id(&torn[1])], "{name}");
        assert_eq!(sweep_torn(store, &job(), earlier).await.unwrap(), [], "{name}: again");
        assert_eq!(list_checkpoints(store, &job()).await.unwrap(), [id(&whole)], "{name}");
        let left = store.list(&layout::checkpoints(&job())).await.unwrap();
        assert_eq!(left.len(), 4 + 2, "{name}: {left:?}");
    }
}

/// A process that was killed while it wrote to a disk leaves files that no listing shows.
#[tokio::test]
async fn half_written_files_of_a_folder_go_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = lorafleet_store::Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let torn = draft(50, 1, GENERATION);
    let place = folder.path().join(layout::checkpoint(&job(), &id(&torn)).as_ref());
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("optimizer.safetensors#1"), b"half").unwrap();
    assert_eq!(store.list(&layout::checkpoints(&job())).await.unwrap(), []);
    assert_eq!(sweep_torn(&store, &job(), |_| true).await.unwrap(), [id(&torn)]);
    assert!(!place.exists());
}
