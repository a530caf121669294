//! Where the hub is, who asks, and where its files are kept: the variables that Hugging Face's own tools read.

use std::{fs, path::PathBuf};

use super::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// Settings of a hub.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's URL, without a slash at its end.
    pub endpoint: String,
    /// What identifies the user to it.
    pub token: Option<String>,
    /// The cache's folder.
    pub cache: PathBuf,
    /// Only what is in the cache is used.
    pub offline: bool,
}

impl HubConfig {
    /// The environment's: `HF_ENDPOINT`, `HF_TOKEN` (or the token file that `hf auth login` writes), `HF_HUB_CACHE` or
    /// `HF_HOME`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// No place for the cache can be told.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The same from other variables.
    ///
    /// # Errors
    /// As [`HubConfig::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let user = || Some(path("HOME")?.join(".cache"));
        let home =
            path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME").or_else(user)?.join("huggingface")));
        let cache =
            path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(HubError::NoCache)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let from_file = || fs::read_to_string(token_file?).ok();
        let token = set("HF_TOKEN").or_else(from_file).map(|token| token.trim().to_owned());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            cache,
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        })
    }
}

/// A token is nobody's business.
impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish()
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let find = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        HubConfig::from_variables(find).unwrap()
    }

    #[test]
    fn variables_are_those_of_hugging_face() {
        let plain = config(&[("HOME", "/home/u")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let all = config(&[
            ("HF_HOME", "/data/hf"),
            ("HF_ENDPOINT", "http://mirror:8080/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!((all.endpoint.as_str(), all.token.as_deref()), ("http://mirror:8080", Some("hf_x")));
        assert_eq!((all.cache.clone(), all.offline), (PathBuf::from("/data/hf/hub"), true));
        assert!(!format!("{all:?}").contains("hf_x"));
        assert_eq!(config(&[("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
        assert!(HubConfig::from_variables(|_| None).is_err());
    }

    #[test]
    fn a_login_s_token_is_found() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let config = config(&[("HF_HOME", home.path().to_str().unwrap())]);
        assert_eq!(config.token.as_deref(), Some("hf_file"));
    }
}
