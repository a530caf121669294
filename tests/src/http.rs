//! One GET of a server on this machine.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};

/// The body of what the server at `address` (`host:port`) answers.
///
/// # Errors
/// No connection, or an answer that is no body under 200.
pub fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    // 1.0: the whole body until the connection closes.
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{address}{path}: {status}: {body}");
    Ok(body.to_owned())
}
