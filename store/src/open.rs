//! From a URL and environment variables to a store.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::{Path, Result, StoreError};

/// What `object_store` itself does about a request that fails: parts of an upload can be repeated nowhere else.
const REQUEST_RETRIES: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    },
    max_retries: 3,
    retry_timeout: Duration::from_secs(60),
};
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of one request; none carries more than one part of an upload or one range of a download.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// The variables that a scheme reads, as pairs of lower-case name and value.
pub(crate) type Variables = Vec<(String, String)>;

/// The backend of a URL, and whether its errors may pass by themselves.
pub(crate) struct Opened {
    pub(crate) backend: Arc<dyn ObjectStore>,
    pub(crate) remote: bool,
    /// The folder that it is, where it is one.
    pub(crate) folder: Option<PathBuf>,
}

/// Opens the store of a URL. `variables` are the environment's.
pub(crate) fn open(text: &str, variables: &Variables) -> Result<Opened> {
    let bad = |reason: String| StoreError::Url { url: text.to_owned(), reason };
    let url = Url::parse(text).map_err(|error| bad(format!("it is no URL ({error})")))?;
    if url.password().is_some() {
        return Err(bad("keys belong into environment variables, not into the URL".into()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or fragment; options belong into environment variables".into()));
    }
    let built = match url.scheme() {
        "file" => return local(&url).map_err(bad),
        "memory" => return Ok(Opened { backend: memory(&url), remote: false, folder: None }),
        "s3" | "s3a" => s3(&url, variables),
        "gs" => gcs(&url, variables),
        "az" | "abfs" | "abfss" | "azure" => azure(&url, variables),
        other => return Err(bad(format!("{other:?} is no known kind of store"))),
    };
    let options = "options come from the environment: AWS_*, GOOGLE_*, AZURE_*";
    let backend = built.map_err(|error| bad(format!("{error} ({options})")))?;
    let prefix = Path::from_url_path(url.path()).map_err(|error| bad(error.to_string()))?;
    Ok(Opened { backend: Arc::new(PrefixStore::new(backend, prefix)), remote: true, folder: None })
}

fn local(url: &Url) -> std::result::Result<Opened, String> {
    let path = url
        .to_file_path()
        .map_err(|()| "a file URL has an absolute path and no host: file:///…".to_owned())?;
    std::fs::create_dir_all(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| error.to_string())?;
    // A row in the database says that the file is there, so it must survive what the row survives.
    let backend = Arc::new(store.with_fsync(true));
    Ok(Opened { backend, remote: false, folder: Some(path) })
}

/// `memory:///name` is one store for the whole process; `memory://` a new one each time.
fn memory(url: &Url) -> Arc<dyn ObjectStore> {
    static NAMED: Mutex<Option<HashMap<String, Arc<InMemory>>>> = Mutex::new(None);
    let name = format!("{}{}", url.host_str().unwrap_or_default(), url.path().trim_end_matches('/'));
    if name.is_empty() {
        return Arc::new(InMemory::new());
    }
    let mut named = NAMED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    named.get_or_insert_default().entry(name).or_default().clone()
}

fn s3(url: &Url, variables: &Variables) -> object_store::Result<Arc<dyn ObjectStore>> {
    let endpoint = ["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"]
        .iter()
        .find_map(|wanted| variables.iter().find(|(name, _)| name == wanted))
        .map(|(_, value)| value.as_str());
    let mut builder = AmazonS3Builder::new()
        .with_url(url.as_str())
        .with_client_options(client(endpoint))
        // Encryption says whether a body arrived as it was sent; a hash of it besides would cost as much again.
        .with_unsigned_payload(is_encrypted(endpoint))
        .with_retry(REQUEST_RETRIES);
    for (key, value) in known::<AmazonS3ConfigKey>("aws_", variables) {
        builder = builder.with_config(key, value);
    }
    Ok(Arc::new(builder.build()?))
}

fn gcs(url: &Url, variables: &Variables) -> object_store::Result<Arc<dyn ObjectStore>> {
    let endpoint =
        variables.iter().find(|(name, _)| name == "google_base_url").map(|(_, value)| value.as_str());
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_url(url.as_str())
        .with_client_options(client(endpoint))
        .with_retry(REQUEST_RETRIES);
    for (key, value) in known::<GoogleConfigKey>("google_", variables) {
        builder = builder.with_config(key, value);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(url: &Url, variables: &Variables) -> object_store::Result<Arc<dyn ObjectStore>> {
    let endpoint =
        variables.iter().find(|(name, _)| name == "azure_endpoint").map(|(_, value)| value.as_str());
    let mut builder = MicrosoftAzureBuilder::new()
        .with_url(url.as_str())
        .with_client_options(client(endpoint))
        .with_retry(REQUEST_RETRIES);
    for (key, value) in known::<AzureConfigKey>("azure_", variables) {
        builder = builder.with_config(key, value);
    }
    Ok(Arc::new(builder.build()?))
}

/// The variables with this prefix that the backend knows.
fn known<K: std::str::FromStr>(prefix: &str, variables: &Variables) -> Vec<(K, String)> {
    let with_prefix = variables.iter().filter(|(name, _)| name.starts_with(prefix));
    with_prefix.filter_map(|(name, value)| Some((name.parse().ok()?, value.clone()))).collect()
}

/// Plain HTTP only to this machine, unless the environment says otherwise (`AWS_ALLOW_HTTP` and its like).
fn client(endpoint: Option<&str>) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        .with_timeout(REQUEST_LIMIT)
        .with_allow_http(endpoint.is_some_and(is_loopback))
}

/// Without an endpoint it is Amazon's.
fn is_encrypted(endpoint: Option<&str>) -> bool {
    endpoint.is_none_or(|endpoint| Url::parse(endpoint).is_ok_and(|url| url.scheme() == "https"))
}

fn is_loopback(endpoint: &str) -> bool {
    match Url::parse(endpoint).ok().as_ref().and_then(Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// This process's environment, names in lower case.
pub(crate) fn environment() -> Variables {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?.to_ascii_lowercase(), value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn every_kind_of_url_opens() {
        let dir = tempfile::tempdir().unwrap();
        let new_folder = Url::from_directory_path(dir.path().join("a b/store")).unwrap();
        let cases = [
            (new_folder.as_str(), variables(&[]), false),
            ("memory://", variables(&[]), false),
            ("s3://bucket/some/prefix", variables(&[("aws_region", "eu-central-1")]), true),
            ("gs://bucket/prefix", variables(&[("google_skip_signature", "true")]), true),
            ("az://container/prefix", variables(&[("azure_storage_account_name", "account")]), true),
        ];
        for (url, variables, remote) in cases {
            let opened = open(url, &variables).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(opened.remote, remote, "{url}");
        }
        assert!(dir.path().join("a b/store").is_dir());
    }

    #[test]
    fn wrong_urls_say_what_is_wrong() {
        for (url, expected) in [
            ("/var/store", "no URL"),
            ("ftp://host/x", "\"ftp\""),
            ("file://host/x", "file:///"),
            ("s3://key:secret@bucket", "environment variables"),
            ("s3://bucket?region=x", "query"),
            ("file:///proc/version/store", "cannot create"),
            ("az://container/x", "AZURE_"),
        ] {
            let error =
                open(url, &variables(&[])).err().unwrap_or_else(|| panic!("{url} opened")).to_string();
            assert!(error.contains(expected) && error.contains("s3://bucket/prefix"), "{url}: {error}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        assert!(is_loopback("http://127.0.0.1:9000") && is_loopback("http://localhost:1/"));
        assert!(is_loopback("http://[::1]:9000"));
        assert!(is_encrypted(None) && is_encrypted(Some("https://minio:9000")));
        assert!(!is_encrypted(Some("http://minio:9000")) && !is_encrypted(Some("minio")));
        assert!(!is_loopback("http://10.0.0.1:9000") && !is_loopback("http://localhost.example.com"));
    }
}
