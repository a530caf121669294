//! A private Postgres from start to stop.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::account::Account;
use crate::folder::{Folder, PORT};
use crate::process::Process;
use crate::template;
use crate::{Binaries, Error, Result};

/// The one database user; the socket's folder decides who can be it.
const USER: &str = "lorafleet";
/// How long a fast shutdown may take before the server is stopped without its final checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// How a private Postgres runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What was committed survives a crash of the machine. False for tests.
    pub durable: bool,
    /// Memory of the server's page cache, in MiB.
    pub shared_buffers_mib: u32,
    /// Clients at once.
    pub max_connections: u32,
    /// How long the server may take until it accepts connections; recovery after a crash is part of it.
    pub start_limit: Duration,
    /// Further settings, as in postgresql.conf.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            durable: true,
            shared_buffers_mib: 32,
            max_connections: 60,
            start_limit: Duration::from_secs(120),
            settings: Vec::new(),
        }
    }
}

impl Options {
    /// For tests: nothing waits for the disk, the data directory is copied from a cached one, little memory is used.
    pub fn throwaway() -> Options {
        Options { durable: false, shared_buffers_mib: 8, ..Options::default() }
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut all: Vec<(&str, String)> = vec![
            ("listen_addresses", String::new()),
            ("port", PORT.to_string()),
            ("unix_socket_permissions", "0700".into()),
            ("shared_buffers", format!("{}MB", self.shared_buffers_mib)),
            ("max_connections", self.max_connections.to_string()),
            ("max_wal_senders", "0".into()),
            ("wal_level", "minimal".into()),
            ("jit", "off".into()),
            ("timezone", "UTC".into()),
        ];
        if self.durable {
            // A busy queue leaves a thousand dead rows a second; by default they are looked for once a minute.
            all.push(("autovacuum_naptime", "10s".into()));
        } else {
            let off = ["fsync", "synchronous_commit", "full_page_writes"];
            all.extend(off.map(|name| (name, "off".to_owned())));
        }
        let all = all.into_iter().map(|(name, value)| (name.to_owned(), value));
        all.chain(self.settings.iter().cloned()).collect()
    }
}

/// A running server; stopped when dropped, and on Linux also when the process dies.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    folder: Folder,
    options: Options,
    binaries: Binaries,
    account: Account,
    /// Removed after everything else is gone.
    _throwaway: Option<tempfile::TempDir>,
}

impl Postgres {
    /// Starts the server whose files are in `dir`; a new or empty folder gets a new one. Blocks until it accepts
    /// connections.
    ///
    /// When we are root and no other account can reach `dir`, the data lies below `/var/lib/lorafleet` and
    /// `{dir}/relocated` names the place.
    ///
    /// # Errors
    /// [`Error::Missing`] without PostgreSQL's programs, [`Error::InUse`] while another process has the folder, and
    /// whatever keeps the server from starting, with the end of its log.
    pub fn start(dir: &Path, options: Options) -> Result<Postgres> {
        let (binaries, account) = (Binaries::find()?, Account::choose());
        let folder = Folder::open(dir, account)?;
        Postgres::start_in(folder, None, options, binaries, account)
    }

    /// Starts a new, empty server in a temporary folder, which is removed when it is dropped.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn throwaway() -> Result<Postgres> {
        Postgres::throwaway_with(Options::throwaway())
    }

    /// As [`Postgres::throwaway`], with other options.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn throwaway_with(options: Options) -> Result<Postgres> {
        let (binaries, account) = (Binaries::find()?, Account::choose());
        let (dir, folder) = template::throwaway_folder(account)?;
        Postgres::start_in(folder, Some(dir), options, binaries, account)
    }

    fn start_in(
        folder: Folder,
        dir: Option<tempfile::TempDir>,
        options: Options,
        binaries: Binaries,
        account: Account,
    ) -> Result<Postgres> {
        let data = folder.data();
        if data.join("PG_VERSION").exists() {
            folder.end_orphan()?;
        } else {
            // What an interrupted initialization left is no data.
            if data.exists() {
                std::fs::remove_dir_all(&data).map_err(Error::io("remove", &data))?;
            }
            create_data(&data, &options, &binaries, account)?;
        }
        let mut postgres = Postgres { process: None, folder, options, binaries, account, _throwaway: dir };
        postgres.start_again()?;
        Ok(postgres)
    }

    /// Starts the server again after [`Postgres::stop`]; nothing happens when it runs.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_again(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let log = self.folder.log();
        let file = File::options().create(true).append(true).open(&log).map_err(Error::io("open", &log))?;
        let mut command = command(&self.binaries.postgres(), self.account);
        command.arg("-D").arg(self.folder.data()).arg("-k").arg(self.folder.socket());
        for (name, value) in self.options.settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let process = Process::spawn(command, self.stop_signal());
        self.process = Some(process.map_err(Error::io("run", &self.binaries.postgres()))?);
        self.wait_ready().inspect_err(|_| self.end())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let start = Instant::now();
        while !self.folder.is_ready(process.id()) {
            let (log, tail) = (self.folder.log(), self.folder.log_tail());
            if let Some(status) = process.ended().map_err(Error::io("wait for", &self.binaries.postgres()))? {
                return Err(Error::Ended { status, log, tail });
            }
            let limit = self.options.start_limit;
            if start.elapsed() > limit {
                return Err(Error::Timeout { action: "accept connections", limit, log, tail });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The URL of a database, as sqlx and libpq read it.
    pub fn url(&self, database: &str) -> String {
        let socket = percent_encode(&self.folder.socket().to_string_lossy());
        format!("postgres://{USER}@localhost/{}?host={socket}", percent_encode(database))
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.socket().join(format!(".s.PGSQL.{PORT}"))
    }

    /// Makes a database; it may be there already.
    ///
    /// # Errors
    /// [`Error::Program`] with what the server said.
    pub fn createdb(&self, database: &str) -> Result<()> {
        let mut command = Command::new(self.binaries.createdb());
        without_settings(&mut command);
        command.arg("-h").arg(self.folder.socket()).args([
            "-p",
            &PORT.to_string(),
            "-U",
            USER,
            "--",
            database,
        ]);
        match run(&mut command) {
            Err(Error::Program { output, .. }) if output.contains("already exists") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes a database with a name of its own and returns its URL.
    ///
    /// # Errors
    /// As [`Postgres::createdb`].
    pub fn fresh_database(&self) -> Result<String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fresh_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.createdb(&name)?;
        Ok(self.url(&name))
    }

    /// Stops the server: connections are closed, a durable one writes everything out. Nothing happens when it does
    /// not run.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        let signal = self.stop_signal();
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let place = self.binaries.postgres();
        if process.stop(signal, STOP_LIMIT).map_err(Error::io("signal", &place))? {
            return Ok(());
        }
        process.kill().map_err(Error::io("kill", &place))?;
        let (log, tail) = (self.folder.log(), self.folder.log_tail());
        Err(Error::Timeout { action: "stop", limit: STOP_LIMIT, log, tail })
    }

    /// The folder that was given to [`Postgres::start`], or the temporary one.
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// Fast shutdown writes everything out; immediate shutdown writes nothing.
    fn stop_signal(&self) -> Signal {
        if self.options.durable { Signal::INT } else { Signal::QUIT }
    }

    fn end(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "stopping Postgres");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}

fn create_data(data: &Path, options: &Options, binaries: &Binaries, account: Account) -> Result<()> {
    if options.durable {
        initdb(data, binaries, account, &[])
    } else {
        template::copy_to(data, binaries, account)
    }
}

/// Makes a new data directory, with one superuser and trust in whoever can reach the socket.
pub(crate) fn initdb(data: &Path, binaries: &Binaries, account: Account, further: &[&str]) -> Result<()> {
    std::fs::create_dir(data).map_err(Error::io("create", data))?;
    std::fs::set_permissions(data, Permissions::from_mode(0o700)).map_err(Error::io("chmod", data))?;
    account.own(data)?;
    let mut command = command(&binaries.initdb(), account);
    command.arg("-D").arg(data).args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"]).args(further);
    run(&mut command).map(drop)
}

/// A command run by the account, in a place that it can be in, without our own PostgreSQL settings.
fn command(program: &Path, account: Account) -> Command {
    let mut command = Command::new(program);
    account.apply(&mut command);
    without_settings(&mut command);
    command.current_dir("/");
    command
}

fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C"); // messages in English, since one is read
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = Path::new(command.get_program()).to_path_buf();
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("run", &program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let output_text = format!("{text}{}", String::from_utf8_lossy(&output.stderr)).trim().to_owned();
    Err(Error::Program { program: program.display().to_string(), status: output.status, output: output_text })
}

fn percent_encode(text: &str) -> String {
    let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    text.bytes()
        .map(|byte| if keep(&byte) { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_encoded() {
        assert_eq!(percent_encode("/tmp/a b"), "%2Ftmp%2Fa%20b");
    }
}
