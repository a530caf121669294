//! From the files of a data set to tokens and labels.

mod check;
mod container;
mod dataset;
mod encode;
mod example;
mod files;
mod formats;
mod labels;
mod mask;
mod place;
mod pyjson;
mod summary;
mod template;
mod tokenize;
mod tokenizer_files;

pub use check::{Checked, FileCheck, check};
pub use container::{Container, Fields, FileKind, Input, MAX_LINE, needs_file};
pub use dataset::{DataFile, Dataset, ReadOptions};
pub use example::{Example, Target};
pub use files::{FilesError, expand, is_elsewhere, is_pattern, local_path, matching};
pub use formats::{Chat, Content, Format, Row, Rules};
pub use labels::{Classes, Label, Labels};
pub use mask::{MaskError, encode};
pub use place::{DataError, Place, Unit};
pub use summary::Summary;
pub use template::{ChatTemplate, TemplateError};
pub use tokenize::{Encoded, Texts, Tokenizer, TokenizerError};
