//! Logs: to standard error, for people or machines, filtered by the environment.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{Error, Result};

/// Environment variables that hold the filter, first come first served.
const FILTERS: [&str; 2] = ["LORAFLEET_LOG", "RUST_LOG"];
/// What is logged when none of them is set. Of sqlx and hyper only what went wrong.
const DEFAULT_FILTER: &str = "info,sqlx=warn,hyper=warn,h2=warn,object_store=warn";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line, with the fields of the event and of its spans.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<LogFormat, String> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("{other:?} is neither `human` nor `json`")),
        }
    }
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

/// Sends this process's logs to standard error. What is logged follows `LORAFLEET_LOG`, then `RUST_LOG`, in
/// tracing-subscriber's filter language; `info` without them. The first line names the service.
///
/// # Errors
/// [`Error::Filter`] for a filter that cannot be read, [`Error::LogsTaken`] when called twice.
pub fn init(service: &'static str, format: LogFormat) -> Result<()> {
    let filter = filter(|name| std::env::var(name).ok())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Human => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).with_target(false).finish().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().try_init(),
    };
    installed.map_err(|_| Error::LogsTaken)?;
    tracing::info!(service, version = env!("CARGO_PKG_VERSION"), process = std::process::id(), "starting");
    Ok(())
}

fn filter(variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter> {
    for name in FILTERS {
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            return EnvFilter::try_new(&value).map_err(|reason| Error::Filter {
                variable: name,
                value,
                reason: reason.to_string(),
            });
        }
    }
    Ok(EnvFilter::new(DEFAULT_FILTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_parse_and_print() {
        for format in [LogFormat::Human, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().unwrap_err().contains("json"));
    }

    #[test]
    fn filters_come_from_the_environment() {
        assert_eq!(filter(|_| None).unwrap().to_string().split(',').count(), 5);
        let both = |name: &str| Some(if name == "LORAFLEET_LOG" { "warn" } else { "debug" }.to_owned());
        assert_eq!(filter(both).unwrap().to_string(), "warn");
        let error = filter(|_| Some("a=b=c".into())).unwrap_err().to_string();
        assert!(error.contains("LORAFLEET_LOG") && error.contains("a=b=c"), "{error}");
    }
}
