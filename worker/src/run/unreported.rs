//! What the coordinator had not acknowledged when a checkpoint was written goes with it: steps are not lost with their
//! members when all of them die while the coordinator is away.

use bytes::Bytes;
use lorafleet_lora::train::CheckpointFiles;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{CheckpointId, FileName};
use prost::Message;

use super::report::Backlog;

/// Its file in a checkpoint: a protobuf message. It is not there when everything was acknowledged.
const FILE: &str = "unreported.pb";

#[derive(Clone, PartialEq, Message)]
struct Unreported {
    #[prost(message, repeated, tag = "1")]
    points: Vec<pb::MetricPoint>,
    #[prost(message, repeated, tag = "2")]
    events: Vec<pb::ReportEvent>,
}

/// The file, if there is anything to keep; points keep the attempt and generation that made them.
pub(super) fn file(backlog: Backlog) -> Option<(FileName, Bytes)> {
    let Backlog { points, events } = backlog;
    if points.is_empty() && events.is_empty() {
        return None;
    }
    let name = FILE.parse().expect("a plain name");
    Some((name, Unreported { points, events }.encode_to_vec().into()))
}

/// What of it a checkpoint of an earlier attempt holds.
///
/// Keys of events are unique within an attempt: those of the one that ended are told apart by its number.
///
/// # Errors
/// The file is no such message.
pub(super) fn read(id: &CheckpointId, files: &CheckpointFiles) -> Result<Backlog, prost::DecodeError> {
    let Some(bytes) = files.get(FILE) else { return Ok(Backlog::default()) };
    let Unreported { points, mut events } = Unreported::decode(bytes.as_slice())?;
    for event in &mut events {
        // One that was kept before has such a key already.
        if !event.key.starts_with(|first: char| first.is_ascii_digit()) {
            event.key = format!("{}/{}", id.fence().attempt, event.key);
        }
    }
    Ok(Backlog { points, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> CheckpointId {
        "0000000025-0002-0003-0190a5b600007000".parse().unwrap()
    }

    #[test]
    fn what_was_kept_is_read_back_and_its_keys_are_the_old_attempts() {
        let points =
            vec![pb::MetricPoint { step: 24, loss: 3.5, attempt: 2, generation: 3, ..Default::default() }];
        let event =
            |key: &str| pb::ReportEvent { key: key.into(), kind: "evaluated".into(), ..Default::default() };
        let kept =
            Backlog { points: points.clone(), events: vec![event("evaluated/20"), event("1/evaluated/10")] };
        let (name, bytes) = file(kept).unwrap();
        let files = [(name.to_string(), bytes.to_vec())].into();
        let read = read(&id(), &files).unwrap();
        assert_eq!(read, Backlog { points, events: vec![event("2/evaluated/20"), event("1/evaluated/10")] });
    }

    #[test]
    fn nothing_to_keep_is_no_file_and_no_file_is_nothing() {
        assert_eq!(file(Backlog::default()), None);
        assert_eq!(read(&id(), &CheckpointFiles::new()).unwrap(), Backlog::default());
        assert!(read(&id(), &[(FILE.to_owned(), vec![255; 9])].into()).is_err());
    }
}
