//! The secrets of tokens: made at random, shown once, compared by their digests.

use std::fmt;

use lorafleet_store::Digest;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// What every secret begins with, so that it is known for one wherever it is found.
const PREFIX: &str = "lft_";

/// A token's secret: the prefix, and 256 bits in hex digits. Shown by [`Secret::reveal`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The sha256 of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretDigest(pub [u8; 32]);

impl Secret {
    /// A new secret of 256 random bits: three random UUIDs have 366 of the system's generator.
    pub fn random() -> Self {
        let random = [(); 3].map(|()| Uuid::new_v4().into_bytes());
        Self(format!("{PREFIX}{}", Digest::of(random.as_flattened())))
    }

    /// Reads what a caller shows; `None` when it has not the form of a secret.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Result<Digest, _> = text.strip_prefix(PREFIX)?.parse();
        digits.is_ok().then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the one who may have it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it. The secret is random in all its bits, so that a plain hash is as good as a slow one.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(Sha256::digest(&self.0).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_read_back() {
        let (a, b) = (Secret::random(), Secret::random());
        assert_ne!(a, b);
        assert_ne!(a.digest(), b.digest());
        assert_eq!(Secret::parse(a.reveal()), Some(a.clone()));
        assert_eq!(Secret::parse(a.reveal()).map(|again| again.digest()), Some(a.digest()));
    }

    #[test]
    fn other_texts_are_none() {
        let secret = Secret::random();
        let upper = secret.reveal().to_uppercase();
        for text in ["", "lft_", "lft_7", &secret.reveal()[4..], &format!("{}0", secret.reveal()), &upper] {
            assert_eq!(Secret::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_log_does_not_show_one() {
        let secret = Secret::random();
        assert!(!format!("{secret:?}").contains(&secret.reveal()[4..]));
    }
}
