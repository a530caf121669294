//! A data set's content, checked while its bytes pass.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::{Buf as _, Bytes};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    data::{self, DataError, Input, Rules},
    job::Task,
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc, task::JoinHandle};

use super::ApiError;

/// Pieces on their way to the check.
const AHEAD: usize = 4;
/// Bytes that tell what a file is.
const HEAD: usize = 4;

/// How rows are read, as a request says it.
pub(super) fn rules(field: &str, hint: &pb::DataHint) -> Result<Rules, ApiError> {
    let task = match pb::Task::try_from(hint.task) {
        Ok(pb::Task::Unspecified) => None,
        Ok(pb::Task::CausalLm) => Some(Task::CausalLm),
        Ok(pb::Task::Classification) => Some(Task::Classification),
        Err(_) => return Err(ApiError::field(format!("{field}.task"), "is not known")),
    };
    Ok(Rules { task, columns: hint.columns.clone() })
}

/// A check under way.
pub(super) struct ContentCheck {
    name: String,
    rules: Rules,
    state: State,
}

/// Where the bytes go.
enum State {
    /// Too few have come to tell what they are.
    Open(Vec<u8>),
    /// To a thread that reads them as they come.
    Stream { bytes: mpsc::Sender<Bytes>, reader: JoinHandle<Result<u64, DataError>> },
    /// Into a file, to be read when it is whole: Parquet keeps its list of contents at its end.
    Whole(tokio::fs::File),
}

impl ContentCheck {
    pub fn new(name: &str, rules: Rules) -> Self {
        Self { name: name.to_owned(), rules, state: State::Open(Vec::new()) }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// What is wrong with the first bad row.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        match &mut self.state {
            State::Open(start) => {
                start.extend_from_slice(&bytes);
                if start.len() >= HEAD {
                    let start = std::mem::take(start);
                    self.begin(start).await?;
                }
            }
            State::Stream { bytes: sender, .. } => {
                if sender.send(bytes).await.is_err() {
                    // The reader has found something; which of its ways to end it was, finish tells.
                    return self.end().await.map(drop);
                }
            }
            State::Whole(file) => file.write_all(&bytes).await.map_err(scratch)?,
        }
        Ok(())
    }

    /// Takes the end, and returns the number of examples.
    ///
    /// # Errors
    /// What is wrong with the first bad row, or that there is none at all.
    pub async fn finish(mut self) -> Result<u64, ApiError> {
        self.end().await
    }

    async fn begin(&mut self, start: Vec<u8>) -> Result<(), ApiError> {
        if data::needs_file(&start) {
            let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(scratch)?);
            file.write_all(&start).await.map_err(scratch)?;
            self.state = State::Whole(file);
            return Ok(());
        }
        let (bytes, receiver) = mpsc::channel(AHEAD);
        let (name, rules) = (self.name.clone(), self.rules.clone());
        let reader = tokio::task::spawn_blocking(move || {
            let input = Input::Stream(Box::new(Pieces { receiver, piece: Bytes::from(start) }));
            data::check(input, &name, &rules).map(|checked| checked.examples)
        });
        self.state = State::Stream { bytes, reader };
        Ok(())
    }

    async fn end(&mut self) -> Result<u64, ApiError> {
        if let State::Open(start) = &mut self.state {
            let start = std::mem::take(start);
            self.begin(start).await?;
        }
        let checked = match std::mem::replace(&mut self.state, State::Open(Vec::new())) {
            State::Open(_) => Err(DataError::Empty),
            State::Stream { bytes, reader } => {
                drop(bytes);
                reader.await.map_err(|error| scratch(io::Error::other(error)))?
            }
            State::Whole(mut file) => {
                file.flush().await.map_err(scratch)?;
                let file = file.into_std().await;
                check_file(file, &self.name, &self.rules).await?
            }
        };
        checked.map_err(bad)
    }
}

/// Checks a whole file on a thread that may block.
pub(super) async fn check_file(
    file: File,
    name: &str,
    rules: &Rules,
) -> Result<Result<u64, DataError>, ApiError> {
    let (name, rules) = (name.to_owned(), rules.clone());
    let check = move || data::check(Input::File(file), &name, &rules).map(|checked| checked.examples);
    tokio::task::spawn_blocking(check).await.map_err(|error| scratch(io::Error::other(error)))
}

/// A bad data set is the client's fault; a file of ours that cannot be read is not.
fn bad(error: DataError) -> ApiError {
    match error {
        DataError::Io { source, .. } => scratch(source),
        other => ApiError::field("chunk", other.to_string()),
    }
}

/// Room for a moment could not be had.
pub(super) fn scratch(error: io::Error) -> ApiError {
    tracing::error!(%error, "a data set could not be checked");
    ApiError::Exhausted {
        message: format!("the data set could not be checked: {error}"),
        reason: "SCRATCH_SPACE",
    }
}

/// Pieces that come over a channel, as one reader. Blocks.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const LINE: &str = r#"{"messages":[{"role":"user","content":"hé"},{"role":"assistant","content":"x"}]}"#;

    async fn check(bytes: &[u8], cut: usize, name: &str, rules: Rules) -> Result<u64, String> {
        let mut check = ContentCheck::new(name, rules);
        for piece in bytes.chunks(cut.max(1)) {
            check.push(Bytes::copy_from_slice(piece)).await.map_err(|error| error.to_string())?;
        }
        check.finish().await.map_err(|error| error.to_string())
    }

    fn example(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/formats").join(name)).unwrap()
    }

    #[tokio::test]
    async fn every_kind_of_file_is_checked() {
        let any = Rules::default;
        for (name, cut, examples) in [
            ("chat.parquet", 100, 16),
            ("chat.parquet", 1, 16),
            ("instruction.json", 7, 10),
            ("text.txt", 7, 1),
        ] {
            assert_eq!(check(&example(name), cut, name, any()).await, Ok(examples), "{name}");
        }
        let columns =
            [("prompt", "question"), ("completion", "answer")].map(|(a, b)| (a.into(), b.into())).into();
        let renamed = Rules { task: Some(Task::CausalLm), columns };
        assert_eq!(check(&example("completion.jsonl.gz"), 100, "", renamed).await, Ok(16));
        let sections = Rules { task: Some(Task::Classification), ..any() };
        let error = check(&example("sections.csv"), 100, "x.csv", sections).await.unwrap_err();
        assert!(error.contains("it has `text`, `section`"), "{error}");
    }

    #[tokio::test]
    async fn the_first_bad_row_is_named() {
        let any = Rules::default;
        let text = format!("{LINE}\n\n{{}}\nnonsense\n");
        let error = check(text.as_bytes(), 1000, "", any()).await.unwrap_err();
        assert!(error.contains("line 3 has the fields of no format"), "{error}");
        // Long after the bad line, too.
        let text = format!("nonsense\n{}", format!("{LINE}\n").repeat(50_000));
        let error = check(text.as_bytes(), 1 << 16, "", any()).await.unwrap_err();
        assert!(error.contains("line 1 is not JSON"), "{error}");
        assert!(check(b"\n \n", 1, "", any()).await.unwrap_err().contains("empty"));
        assert!(check(b"", 1, "", any()).await.unwrap_err().contains("empty"));
        let whole = example("completion.jsonl.gz");
        let columns =
            [("prompt", "question"), ("completion", "answer")].map(|(a, b)| (a.into(), b.into())).into();
        let renamed = Rules { task: None, columns };
        let error = check(&whole[..500], 100, "", renamed).await.unwrap_err();
        assert!(error.contains("gzip data cannot be unpacked"), "{error}");
        let error = check(&example("pairs.parquet")[..3000], 100, "", any()).await.unwrap_err();
        assert!(error.contains("cannot be read as Parquet"), "{error}");
    }

    proptest! {
        /// Wherever the bytes are cut, the answer is the one that a whole file gives.
        #[test]
        fn cuts_do_not_matter(
            lines in prop::collection::vec(
                prop_oneof![Just(LINE), Just(""), Just(" \r"), Just("{}"), Just("\u{feff}"), Just("é")], 0..6),
            end in any::<bool>(),
            cut in 1usize..40,
        ) {
            let text = lines.join("\n") + if end { "\n" } else { "" };
            let rules = Rules::default();
            let whole = data::check(Input::Stream(Box::new(text.as_bytes())), "", &rules);
            let whole = whole.map(|checked| checked.examples).map_err(|error| format!("chunk: {error}"));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(check(text.as_bytes(), cut, "", rules)), whole);
        }
    }
}
