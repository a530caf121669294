//! What can go wrong between the members of a gang.

use std::{fmt, time::Duration};

use lorafleet_proto::v1 as pb;
use pb::Evidence;

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
    /// The peer's collective could not be reached.
    #[error("{peer} could not be reached: {detail}")]
    Unreachable {
        /// Who.
        peer: Peer,
        /// The last try's error.
        detail: String,
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
    /// More than one peer was lost at the same moment, or one that was seen and then told about.
    #[error("{}", several(errors))]
    Several {
        /// What was seen of each.
        errors: Vec<CollectiveError>,
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
    /// Indices of the members that could not be reached, by what this member saw or was told.
    pub fn suspects(&self) -> Vec<u32> {
        match self {
            Self::PeerLeft { peer } => vec![peer.index],
            Self::AbortedByPeer { suspect, .. } => suspect.iter().map(|peer| peer.index).collect(),
            direct => direct.suspicions().into_iter().map(|suspicion| suspicion.index).collect(),
        }
    }

    /// Whom this member could not reach, by its own evidence only: what a peer told is that peer's to report.
    pub fn suspicions(&self) -> Vec<pb::Suspicion> {
        let (peer, evidence) = match self {
            Self::PeerGone { peer, .. } => (peer, Evidence::Gone),
            Self::PeerSilent { peer, .. } => (peer, Evidence::Silent),
            Self::PeerStuck { peer, .. } => (peer, Evidence::Stuck),
            Self::Unreachable { peer, .. } => (peer, Evidence::Unreachable),
            Self::Several { errors } => return errors.iter().flat_map(Self::suspicions).collect(),
            _ => return Vec::new(),
        };
        vec![pb::Suspicion { index: peer.index, evidence: evidence.into() }]
    }
}

/// "a; b; c".
fn several(errors: &[CollectiveError]) -> String {
    errors.iter().map(CollectiveError::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_seen_is_evidence() {
        let peer = |index| Peer { index, worker: format!("w{index}"), address: "x:1".into() };
        let gone = CollectiveError::PeerGone { peer: peer(2), detail: "closed".into() };
        let told = CollectiveError::AbortedByPeer {
            by: peer(1),
            suspect: Some(Box::new(peer(2))),
            reason: gone.to_string(),
        };
        assert_eq!(told.suspicions(), []);
        assert_eq!(told.suspects(), [2]);
        let silent = CollectiveError::PeerSilent { peer: peer(0), after: Duration::from_secs(5) };
        let both = CollectiveError::Several { errors: vec![gone, silent] };
        let evidence: Vec<_> = both.suspicions().iter().map(|one| (one.index, one.evidence())).collect();
        assert_eq!(evidence, [(2, Evidence::Gone), (0, Evidence::Silent)]);
        assert_eq!(both.suspects(), [2, 0]);
        assert!(both.to_string().contains("w2") && both.to_string().contains("w0"));
    }
}
