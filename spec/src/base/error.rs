//! What is wrong with a base.

use std::{fmt, path::PathBuf};

/// Problems of one kind that a message lists before it only counts them.
const LISTED: usize = 8;

/// What is wrong with a base.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The folder is not there, or is no folder.
    #[error("{} is not a folder with a Hugging Face model", .0.display())]
    NotAFolder(PathBuf),
    /// A file that every base needs is not there.
    #[error("{file} is missing{}", .hint.as_deref().unwrap_or_default())]
    MissingFile {
        /// Its name within the folder.
        file: String,
        /// What to do, beginning with a separator.
        hint: Option<String>,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// config.json is not JSON, or not an object.
    #[error("config.json: {0}")]
    ConfigJson(String),
    /// The architecture is none that can be trained.
    #[error("config.json: the architecture {found} is not known; known are {}", known.join(", "))]
    UnknownArchitecture {
        /// As config.json says.
        found: String,
        /// All that can be trained.
        known: Vec<&'static str>,
    },
    /// Fields of config.json are absent, or say what cannot be trained.
    #[error("config.json: {}", list(.0))]
    Config(Vec<String>),
    /// A safetensors file is damaged.
    #[error("{file}: {message}")]
    Weights {
        /// Its name.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// Tensors are missing, or have another shape or type than config.json asks for.
    #[error("the weights do not fit config.json: {}", list(.0))]
    Tensors(Vec<String>),
    /// Several of these at once.
    #[error("{}", list(.0))]
    Many(Vec<BaseError>),
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(LISTED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if items.len() > LISTED {
        text += &format!("; and {} more", items.len() - LISTED);
    }
    text
}
