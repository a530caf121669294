//! What members say to each other: the handshake, the header of an operation, and the frames of the control line.

use std::{
    io::{self, Read, Write},
    str,
};

use lorafleet_proto::v1 as pb;
use serde::{Deserialize, Serialize};

/// Opens every connection, so that a stranger is recognized at once.
const MAGIC: &[u8; 8] = b"LORAFLT\n";
/// A handshake message is never longer.
const HANDSHAKE_LIMIT: usize = 4096;
/// Opens every operation's header.
const OP_MAGIC: &[u8; 4] = b"LFOP";
/// The reason in an abort frame is cut off here.
const REASON_LIMIT: usize = 1024;
/// "nobody" in an abort frame.
const NOBODY: u32 = u32::MAX;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Channel {
    /// Pings, good-byes and aborts; between every two members, dialled by the higher index.
    Control,
    /// The ring's tensors; from each member to the next.
    Data,
    /// Only asks for an answer.
    Probe,
}

/// The first message of the member that dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub protocol: u32,
    pub job: String,
    pub attempt: u32,
    pub generation: u32,
    pub generation_id: String,
    pub world_size: u32,
    /// Index of the member that dials.
    pub from: u32,
    /// Index of the member that it wants.
    pub to: u32,
    pub channel: Channel,
}

impl Hello {
    pub fn fence(&self) -> pb::Fence {
        pb::Fence {
            attempt: self.attempt,
            generation: self.generation,
            generation_id: self.generation_id.clone(),
        }
    }
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Welcome {
    /// Come in.
    Accepted,
    /// Not yet: this member has not begun that generation. Try again.
    Later(String),
    /// Never: something differs for good.
    Refused(String),
}

/// Writes a handshake message.
pub(super) fn write_handshake(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length as usize <= HANDSHAKE_LIMIT);
    let length = length.ok_or_else(|| invalid("the handshake is too long"))?;
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes)
}

/// Reads a handshake message.
pub(super) fn read_handshake<T: for<'a> Deserialize<'a>>(stream: &mut impl Read) -> io::Result<T> {
    let mut head = [0u8; 12];
    stream.read_exact(&mut head)?;
    let (magic, length) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(invalid("the other side does not speak lorafleet's gang protocol"));
    }
    let length = u32::from_le_bytes(length.try_into().expect("4 of 12 bytes")) as usize;
    if length > HANDSHAKE_LIMIT {
        return Err(invalid("the handshake is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Which operation a header opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpKind {
    ReduceI64 = 1,
    ReduceF32 = 2,
    Broadcast = 3,
}

/// Precedes an operation's payload on the data line, so that members out of step find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpHeader {
    pub kind: OpKind,
    /// How many operations came before it.
    pub sequence: u64,
    /// Elements, or the root's bytes in a broadcast.
    pub length: u64,
    /// The root of a broadcast.
    pub root: u32,
}

impl OpHeader {
    pub const BYTES: usize = 28;

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(OP_MAGIC);
        bytes.extend_from_slice(&(self.kind as u32).to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&self.root.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let kind = match word(4) {
            1 => OpKind::ReduceI64,
            2 => OpKind::ReduceF32,
            3 => OpKind::Broadcast,
            _ => return None,
        };
        (&bytes[..4] == OP_MAGIC).then(|| Self { kind, sequence: long(8), length: long(16), root: word(24) })
    }

    /// As errors name it.
    pub fn describe(&self) -> String {
        let Self { sequence, length, root, .. } = self;
        match self.kind {
            OpKind::ReduceI64 => format!("operation {sequence}, a sum of {length} integers"),
            OpKind::ReduceF32 => format!("operation {sequence}, a sum of {length} floats"),
            OpKind::Broadcast => format!("operation {sequence}, a broadcast from member {root}"),
        }
    }
}

/// A message on the control line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// I am alive.
    Ping,
    /// I leave politely.
    Bye,
    /// The gang is over.
    Abort { suspect: Option<u32>, reason: String },
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping => vec![1],
            Self::Bye => vec![2],
            Self::Abort { suspect, reason } => {
                let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_LIMIT)];
                let mut bytes = vec![3];
                bytes.extend_from_slice(&suspect.unwrap_or(NOBODY).to_le_bytes());
                bytes.extend_from_slice(&(reason.len() as u16).to_le_bytes());
                bytes.extend_from_slice(reason);
                bytes
            }
        }
    }
}

/// Puts frames together from the pieces that a socket delivers.
#[derive(Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        let (frame, used) = match self.0.as_slice() {
            [] => return Ok(None),
            [1, ..] => (Frame::Ping, 1),
            [2, ..] => (Frame::Bye, 1),
            [3, rest @ ..] => match decode_abort(rest)? {
                None => return Ok(None),
                Some((frame, used)) => (frame, used + 1),
            },
            [other, ..] => return Err(invalid(&format!("unknown control frame {other}"))),
        };
        self.0.drain(..used);
        Ok(Some(frame))
    }
}

/// An abort frame without its first byte, and how long it is.
fn decode_abort(bytes: &[u8]) -> io::Result<Option<(Frame, usize)>> {
    let Some((head, rest)) = bytes.split_first_chunk::<6>() else { return Ok(None) };
    let suspect = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
    let length = u16::from_le_bytes(head[4..].try_into().expect("2 bytes")) as usize;
    if length > REASON_LIMIT {
        return Err(invalid("the reason of an abort is too long"));
    }
    let Some(reason) = rest.get(..length) else { return Ok(None) };
    let reason = str::from_utf8(reason).map_err(|_| invalid("the reason of an abort is not UTF-8"))?;
    let frame = Frame::Abort { suspect: (suspect != NOBODY).then_some(suspect), reason: reason.to_owned() };
    Ok(Some((frame, 6 + length)))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            Just(Frame::Ping),
            Just(Frame::Bye),
            (proptest::option::of(0u32..1000), "\\PC{0,40}")
                .prop_map(|(suspect, reason)| Frame::Abort { suspect, reason }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(sent in proptest::collection::vec(frame(), 0..8), cut in 1usize..9) {
            let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
            let (mut frames, mut received) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                frames.push(piece);
                while let Some(frame) = frames.next().unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(sent, received);
        }
    }

    #[test]
    fn headers_survive_the_wire() {
        let header = OpHeader { kind: OpKind::Broadcast, sequence: 7, length: 1 << 40, root: 3 };
        let bytes: [u8; OpHeader::BYTES] = header.encode().try_into().unwrap();
        assert_eq!(OpHeader::decode(&bytes), Some(header));
        assert_eq!(OpHeader::decode(&[0; OpHeader::BYTES]), None);
    }

    #[test]
    fn a_stranger_is_refused() {
        let error = read_handshake::<Hello>(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).unwrap_err();
        assert!(error.to_string().contains("gang protocol"), "{error}");
        let long = Frame::Abort { suspect: None, reason: "é".repeat(2000) };
        let mut frames = Frames::default();
        frames.push(&long.encode());
        assert!(matches!(frames.next(), Ok(Some(Frame::Abort { .. }))));
        frames.push(&[9]);
        assert!(frames.next().is_err());
    }
}
