//! Pages (AIP-158): sizes within limits, and opaque tokens that fit one list only.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::error::ApiError;

/// Entries on a page when the client does not say.
const DEFAULT: u32 = 50;
/// Entries on a page at most.
const MAX: u32 = 1000;
/// Bytes of the checksum in a token.
const CHECK: usize = 8;

/// One page that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Entries at most.
    pub size: u32,
    /// Key of the last entry of the page before; `None` on the first page.
    pub after: Option<String>,
    list: String,
}

impl Page {
    /// Reads a request's page of a list; `list` names the list and everything that filters it, so that a token of
    /// another list is refused.
    pub fn read(size: i32, token: &str, list: impl Into<String>) -> Result<Self, ApiError> {
        let list = list.into();
        let size = match u32::try_from(size) {
            Ok(0) => DEFAULT,
            Ok(size) => size.min(MAX),
            Err(_) => return Err(ApiError::field("page_size", "must not be negative")),
        };
        let after = match token {
            "" => None,
            token => Some(open(token, &list).ok_or_else(|| {
                ApiError::field("page_token", "is none that this list gave out; begin with an empty one")
            })?),
        };
        Ok(Self { size, after, list })
    }

    /// The key of the page before as a number.
    pub fn after_number<N: std::str::FromStr>(&self) -> Result<Option<N>, ApiError> {
        let number = self.after.as_deref().map(str::parse).transpose();
        number.map_err(|_| ApiError::field("page_token", "is damaged; begin with an empty one"))
    }

    /// Entries to read: one more than the page holds, to know whether another page follows.
    pub fn read_size(&self) -> u32 {
        self.size + 1
    }

    /// Cuts what was read to the page's size, and makes the token of the next page; empty on the last.
    pub fn cut<T>(&self, entries: &mut Vec<T>, key: impl Fn(&T) -> String) -> String {
        if entries.len() <= self.size as usize {
            return String::new();
        }
        entries.truncate(self.size as usize);
        entries.last().map(|last| seal(&key(last), &self.list)).unwrap_or_default()
    }
}

fn seal(key: &str, list: &str) -> String {
    let mut token = String::new();
    for byte in check(key, list).iter().copied().chain(key.bytes()) {
        // Writing into a string does not fail.
        let _ = write!(token, "{byte:02x}");
    }
    token
}

fn open(token: &str, list: &str) -> Option<String> {
    if !token.is_ascii() || !token.len().is_multiple_of(2) || token.len() > 1024 {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..token.len()).step_by(2).map(|i| u8::from_str_radix(&token[i..i + 2], 16).ok()).collect();
    let bytes = bytes?;
    let (sum, key) = bytes.split_at_checked(CHECK)?;
    let key = String::from_utf8(key.to_vec()).ok()?;
    (sum == check(&key, list)).then_some(key)
}

/// Not a secret: it finds damaged tokens and those of other lists.
fn check(key: &str, list: &str) -> [u8; CHECK] {
    let digest = Sha256::new().chain_update(list).chain_update([0]).chain_update(key).finalize();
    let mut check = [0; CHECK];
    check.copy_from_slice(&digest[..CHECK]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_the_list_that_gave_it_out_and_no_other() {
        let page = Page::read(2, "", "jobs").expect("a first page");
        let mut entries = vec![5, 4, 3];
        let token = page.cut(&mut entries, ToString::to_string);
        assert_eq!(entries, [5, 4]);
        let next = Page::read(2, &token, "jobs").expect("a next page");
        assert_eq!(next.after_number::<i64>().expect("a number"), Some(4));
        assert!(Page::read(2, &token, "jobs?states=1").is_err());
        assert!(Page::read(2, "forged", "jobs").is_err());
        assert!(Page::read(2, &token[2..], "jobs").is_err());
    }

    #[test]
    fn sizes_have_a_default_and_a_limit() {
        let size = |n| Page::read(n, "", "jobs").map(|page| page.size).ok();
        assert_eq!((size(0), size(7), size(5000), size(-1)), (Some(50), Some(7), Some(1000), None));
    }

    #[test]
    fn the_last_page_has_no_token() {
        let page = Page::read(2, "", "jobs").expect("a first page");
        assert_eq!(page.cut(&mut vec![1, 2], ToString::to_string), "");
    }
}
