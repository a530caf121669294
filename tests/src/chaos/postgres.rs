//! Sessions of our own on the fleet's Postgres, to take connections, hold locks and end other sessions.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// The first message's number: version 3.0 of the protocol.
const PROTOCOL: u32 = 196_608;
const PATIENCE: Duration = Duration::from_secs(10);

/// A session over the server's Unix socket, which trusts whoever can reach it.
pub struct Session {
    stream: UnixStream,
}

impl Session {
    /// Logs in.
    pub fn open(socket: &Path) -> Result<Session> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Session { stream };
        let mut startup = PROTOCOL.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0lorafleet\0database\0postgres\0application_name\0chaos\0\0");
        session.send(None, &startup)?;
        session.answer().context("log in")?;
        Ok(session)
    }

    /// Runs one statement; returns the rows' columns as text.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<String>>> {
        let mut text = sql.as_bytes().to_vec();
        text.push(0);
        self.send(Some(b'Q'), &text)?;
        self.answer().with_context(|| sql.to_owned())
    }

    /// The one number that a statement returns.
    pub fn number(&mut self, sql: &str) -> Result<u64> {
        let rows = self.query(sql)?;
        let value = rows.first().and_then(|row| row.first()).context("no row")?;
        value.parse().with_context(|| format!("{sql}: {value:?} is no number"))
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len() + 4)?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.stream.write_all(&message)?)
    }

    /// Reads up to "ready for the next statement".
    fn answer(&mut self) -> Result<Vec<Vec<String>>> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                b'D' => rows.push(columns(&body).context("a row that cannot be read")?),
                b'E' => {
                    let text = String::from_utf8_lossy(&body).replace('\0', " ");
                    // A refused login is followed by nothing.
                    if text.contains("FATAL") {
                        bail!("Postgres says: {text}");
                    }
                    error = Some(text);
                }
                b'Z' => match error {
                    None => return Ok(rows),
                    Some(error) => bail!("Postgres says: {error}"),
                },
                _ => {}
            }
        }
    }
}

/// Ends all other client sessions; how many there were.
pub fn terminate_others(socket: &Path) -> Result<u64> {
    Session::open(socket)?.number(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where backend_type = 'client backend' and pid <> pg_backend_pid()",
    )
}

/// Takes connections until there are no more.
pub fn exhaust(socket: &Path) -> Vec<Session> {
    let mut sessions = Vec::new();
    while let Ok(session) = Session::open(socket) {
        sessions.push(session);
    }
    sessions
}

/// A data row: for each column its length, -1 for null, and its bytes.
fn columns(body: &[u8]) -> Option<Vec<String>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        values.push(String::from_utf8_lossy(after.get(..length)?).into_owned());
        rest = &after[length..];
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use lorafleet_postgres::Postgres;

    use super::*;

    #[test]
    fn sessions_answer_end_each_other_and_run_out() {
        let postgres = Postgres::throwaway().unwrap();
        let socket = postgres.socket();
        let mut first = Session::open(&socket).unwrap();
        assert_eq!(first.query("select 'a', null, 7").unwrap(), [["a", "", "7"]]);
        assert!(format!("{:#}", first.query("select 1/0").unwrap_err()).contains("division by zero"));
        assert_eq!(first.number("select 5").unwrap(), 5);
        let held = exhaust(&socket);
        assert!(held.len() > 10);
        assert!(Session::open(&socket).is_err());
        drop(held);
        assert!(terminate_others(&socket).is_ok());
        assert!(first.query("select 1").is_err(), "it was ended");
    }
}
