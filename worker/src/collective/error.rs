//! What can go wrong between the members of a gang.

use std::{fmt, time::Duration};

/// A member as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its place in the gang.
    pub index: u32,
    /// Its worker's name.
    pub worker: String,
    /// host:port of its collective.
    pub address: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {} ({} at {})", self.index, self.worker, self.address)
    }
}

/// Why a collective is of no further use.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CollectiveError {
    /// The peer's connection closed without a good-bye.
    #[error("{peer} is gone: {detail}")]
    PeerGone {
        /// Who.
        peer: Peer,
        /// What the connection said.
        detail: String,
    },
    /// The connection stands, but no ping came for longer than the deadline.
    #[error("{peer} is silent: no ping for {:.1} s", after.as_secs_f64())]
    PeerSilent {
        /// Who.
        peer: Peer,
        /// For how long nothing was heard.
        after: Duration,
    },
    /// The peer pings, but did not take part in an operation before its deadline.
    #[error("{peer} answers pings but did not take part in an operation for {:.0} s", after.as_secs_f64())]
    PeerStuck {
        /// Who.
        peer: Peer,
        /// The deadline that passed.
        after: Duration,
    },
    /// The peer left politely, and then something was wanted from it.
    #[error("{peer} has left the gang")]
    PeerLeft {
        /// Who.
        peer: Peer,
    },
    /// The peer's collective could not be reached before the deadline.
    #[error("{peer} could not be reached: {detail}")]
    Unreachable {
        /// Who.
        peer: Peer,
        /// The last try's error.
        detail: String,
    },
    /// Not every member arrived before the deadline.
    #[error("{} did not join within {:.0} s", join(peers), after.as_secs_f64())]
    Missing {
        /// Who is missing.
        peers: Vec<Peer>,
        /// The deadline that passed.
        after: Duration,
    },
    /// The peer refused the handshake, for good.
    #[error("{peer} refused the handshake: {detail}")]
    Refused {
        /// Who.
        peer: Peer,
        /// What differs: both values.
        detail: String,
    },
    /// A peer ended the collective, and said why.
    #[error("{by} ended the gang: {reason}")]
    AbortedByPeer {
        /// Who ended it.
        by: Peer,
        /// Whom it blames.
        suspect: Option<Box<Peer>>,
        /// Its reason.
        reason: String,
    },
    /// This worker ended it.
    #[error("aborted: {reason}")]
    Aborted {
        /// Why.
        reason: String,
    },
    /// The peer is in another operation, or its buffer has another length.
    #[error("{peer} is out of step: this member is in {ours}, it is in {theirs}")]
    OutOfStep {
        /// Who.
        peer: Peer,
        /// What this member does.
        ours: String,
        /// What the peer does.
        theirs: String,
    },
    /// A sum does not fit 64 bits.
    #[error("a sum passed 64 bits, at or after element {element}: gradients are out of range")]
    Overflow {
        /// Where the chunk with the sum begins.
        element: usize,
    },
    /// A broadcast is larger than this member takes.
    #[error("a broadcast of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// What was asked for makes no sense: a bug in the caller or the coordinator.
    #[error("{0}")]
    Invalid(String),
    /// This machine gave out no thread or socket.
    #[error("this machine: {0}")]
    Local(String),
}

impl CollectiveError {
    /// Indices of the members that could not be reached.
    pub fn suspects(&self) -> Vec<u32> {
        match self {
            Self::PeerGone { peer, .. }
            | Self::PeerSilent { peer, .. }
            | Self::PeerStuck { peer, .. }
            | Self::PeerLeft { peer }
            | Self::Unreachable { peer, .. } => vec![peer.index],
            Self::Missing { peers, .. } => peers.iter().map(|peer| peer.index).collect(),
            Self::AbortedByPeer { suspect, .. } => suspect.iter().map(|peer| peer.index).collect(),
            _ => Vec::new(),
        }
    }
}

/// "a, b and c".
fn join(peers: &[Peer]) -> String {
    let names: Vec<String> = peers.iter().map(Peer::to_string).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
