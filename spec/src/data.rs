//! From lines of a data set to tokens and labels.

mod dataset;
mod example;
mod formats;
mod mask;
mod pyjson;
mod template;
mod tokenize;
mod tokenizer_files;

pub use dataset::{DataError, Dataset, Summary, check_reader};
pub use example::{Example, Target};
pub use formats::{Chat, Format, MAX_LINE, Row, check_line, parse_line};
pub use mask::{MaskError, encode};
pub use template::{ChatTemplate, TemplateError};
pub use tokenize::{Tokenizer, TokenizerError};
