//! What goes to standard output for programs: canonical protobuf JSON.

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use super::Exit;
use crate::show::Table;

/// Prints a message as indented JSON.
pub fn json(message: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(message).context("cannot write the answer as JSON")?;
    line(&text)
}

/// Prints a message as JSON on one line of its own, at once.
pub fn json_line(message: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(message).context("cannot write the answer as JSON")?;
    line(&text)
}

/// Prints an answer: as JSON, or as a line for people.
pub fn answer(json: bool, answer: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<Exit> {
    if json {
        self::json(answer)?
    } else {
        line(&text())?
    }
    Ok(Exit::Done)
}

/// Prints a list: as JSON, or as a table. Where that is empty, people are told what `nothing` says.
pub fn list(json: bool, answer: &impl Serialize, nothing: &str, table: &Table) -> anyhow::Result<Exit> {
    match (json, table.is_empty()) {
        (true, _) => self::json(answer)?,
        (false, true) => eprintln!("{nothing}"),
        (false, false) => line(&table.to_string())?,
    }
    Ok(Exit::Done)
}

/// Prints a line to standard output. A reader that has gone (`| head`) ends the program quietly.
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write to standard output"),
    }
}
