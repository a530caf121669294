//! What can go wrong with a base from the hub, and what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

use lorafleet_spec::{BaseError, base::HubId};

/// Why a base cannot be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is no folder for the cache.
    #[error("no place for what the hub sends: set HOME, HF_HOME or HF_HUB_CACHE")]
    NoCache,
    /// Nothing may be fetched.
    #[error(
        "{id} is not whole in {}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or fetch it once where there is a \
         network (`hf download {}`) and copy the cache",
        cache.display(), id.id
    )]
    Offline {
        /// What is wanted.
        id: HubId,
        /// Where it is not.
        cache: PathBuf,
    },
    /// The hub does not know the user.
    #[error("the hub wants to know who asks for {id} ({status}); {}", hint(*has_token, endpoint, id))]
    Denied {
        /// What is wanted.
        id: HubId,
        /// The answer.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
        /// The hub.
        endpoint: String,
    },
    /// The model is gated.
    #[error(
        "{id} is gated: accept its terms at {endpoint}/{}, and set HF_TOKEN to a token of the account that did ({status})",
        id.id
    )]
    Gated {
        /// What is wanted.
        id: HubId,
        /// The answer.
        status: u16,
        /// The hub.
        endpoint: String,
    },
    /// There is no such model.
    #[error(
        "there is neither a folder {} nor a model of that name at {endpoint}{}",
        id.id, if *has_token { "" } else { " (a private one needs HF_TOKEN)" }
    )]
    NoModel {
        /// What is wanted.
        id: HubId,
        /// Whether a token was sent.
        has_token: bool,
        /// The hub.
        endpoint: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("{} has no revision {:?}: see {endpoint}/{}/tree/main", id.id, id.revision(), id.id)]
    NoRevision {
        /// What is wanted.
        id: HubId,
        /// The hub.
        endpoint: String,
    },
    /// The hub sends too many requests away.
    #[error("{endpoint} answers {status} to requests for {id}; wait and try again{}", if *has_token { "" } else { ", or set HF_TOKEN" })]
    Busy {
        /// What is wanted.
        id: HubId,
        /// The answer.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
        /// The hub.
        endpoint: String,
    },
    /// The hub answers what it should not.
    #[error("{url} answers {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// Its answer.
        reason: String,
    },
    /// The hub cannot be reached.
    #[error(
        "{endpoint} cannot be reached ({reason}); check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the copy \
         of an earlier time"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// What came is not what the hub promised.
    #[error("{file} of {id} came damaged ({reason}); try again")]
    Damaged {
        /// Of what.
        id: HubId,
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository holds no base that can be used.
    #[error("{id}: {source}")]
    Unusable {
        /// Which.
        id: HubId,
        /// Why.
        source: Box<BaseError>,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Local {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HubError {
    pub(super) fn local(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Local { path, source }
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Busy { .. })
    }
}

fn hint(has_token: bool, endpoint: &str, id: &HubId) -> String {
    if has_token {
        "the token in HF_TOKEN (or of `hf auth login`) is not valid there, or may not read it".to_owned()
    } else {
        format!(
            "check the name at {endpoint}/{}; where it is private or gated, set HF_TOKEN to a token that may read it",
            id.id
        )
    }
}
