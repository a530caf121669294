//! The labels of a classification job that names none: those of its training data, which are read for that.

use std::path::Path;

use lorafleet_spec::{
    FieldError, Job,
    data::{DataError, FileCheck, Rules},
};
use lorafleet_store::{Store, StoreError, layout};

use crate::check::CheckError;

/// Names of the classes, in the order of their numbers; none where the label is a number.
pub async fn of_training(store: &Store, job: &Job) -> Result<Vec<String>, CheckError> {
    let folder = tempfile::tempdir().map_err(|error| scratch(Path::new("the temporary folder"), error))?;
    let mut files = Vec::new();
    for (number, source) in job.data.train.iter().enumerate() {
        let digest = crate::check::digest("data.train", source.sha256.as_deref())?;
        let path = folder.path().join(number.to_string());
        store.download(&layout::dataset(&digest), &digest, &path).await?;
        files.push((path, source.source.clone()));
    }
    let rules = Rules { task: Some(job.task), columns: job.data.columns.clone() };
    let read = move || {
        let mut check = FileCheck::new(&rules, None, files.len() > 1);
        for (path, name) in &files {
            check.path(path, name)?;
        }
        let labels = check.labels()?;
        Ok(labels.map(|labels| labels.names().to_vec()).unwrap_or_default())
    };
    let read = tokio::task::spawn_blocking(read).await;
    drop(folder);
    let panicked = |error| scratch(Path::new("the training data"), std::io::Error::other(error));
    read.map_err(panicked)?.map_err(|error: DataError| {
        CheckError::Fields(vec![FieldError::new("data.train", error.to_string())])
    })
}

fn scratch(path: &Path, source: std::io::Error) -> CheckError {
    CheckError::Store(StoreError::Local { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use lorafleet_store::Digest;

    use super::*;

    async fn of(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let store = Store::open("memory://").unwrap();
        let mut train = Vec::new();
        for (name, text) in files {
            let digest = Digest::of(text.as_bytes());
            store.put(&layout::dataset(&digest), text.to_string().into()).await.unwrap();
            train.push(format!("{{source: {name}, sha256: '{digest}'}}"));
        }
        let text = format!("base: b\ntask: classification\ndata: {{train: [{}]}}\n", train.join(", "));
        let job = Job::try_from(&lorafleet_spec::parse_yaml(&text).unwrap()).unwrap();
        of_training(&store, &job).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn labels_are_those_of_all_files() {
        let one = "{\"text\": \"a\", \"label\": \"sound\"}\n";
        assert_eq!(
            of(&[("b.jsonl", one), ("a.csv", "text,label\nx,games\n")]).await.unwrap(),
            ["games", "sound"]
        );
        assert_eq!(
            of(&[("s.jsonl", "{\"text\": \"a\", \"label\": 2.5}")]).await.unwrap(),
            [""; 0],
            "a score"
        );
        let error = of(&[("a.jsonl", one)]).await.unwrap_err();
        assert!(error.contains("at least two labels, and there is only `sound`"), "{error}");
    }
}
