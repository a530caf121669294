//! How a token goes over the wire: `authorization: Bearer lft_…` in the headers of each call.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

/// The header, as gRPC writes it.
pub const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// The token in a header's value.
pub fn read(value: &str) -> Option<&str> {
    let scheme = value.get(..SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| value[SCHEME.len()..].trim())
}

/// Adds a token to the calls of a client, if there is one.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// With a token; an empty one is none.
    ///
    /// # Errors
    /// The token has characters that cannot stand in a header; no token of lorafleet has.
    pub fn new(token: &str) -> Result<Self, UnfitToken> {
        if token.is_empty() {
            return Ok(Self(None));
        }
        let mut value: MetadataValue<Ascii> = format!("{SCHEME}{token}").parse().map_err(|_| UnfitToken)?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(HEADER, value.clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(…)" } else { "Bearer(none)" })
    }
}

/// A token that cannot be sent.
#[derive(Debug)]
pub struct UnfitToken;

impl fmt::Display for UnfitToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token has characters that no token has; its form is `lft_` and 64 hex digits")
    }
}

impl std::error::Error for UnfitToken {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_a_coordinator_reads() {
        let mut bearer = Bearer::new("lft_7").expect("fit");
        let request = bearer.call(Request::new(())).expect("passed on");
        let header = request.metadata().get(HEADER).expect("a header");
        assert_eq!(header.to_str().ok().and_then(read), Some("lft_7"));
        assert!(!format!("{bearer:?} {request:?}").contains("lft_7"), "no log shows it");
    }

    #[test]
    fn without_a_token_there_is_no_header() {
        let request = Bearer::new("").expect("fit").call(Request::new(())).expect("passed on");
        assert!(request.metadata().get(HEADER).is_none());
        assert!(Bearer::new("two\nlines").is_err());
        assert_eq!((read("Basic x"), read("bearer x"), read("")), (None, Some("x"), None));
    }
}
