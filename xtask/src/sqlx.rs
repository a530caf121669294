//! `cargo xtask sqlx`: checks every query against the schema in migrations/ and renews the offline data in .sqlx/.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context as _, bail, ensure};
use lorafleet_postgres::{Binaries, Postgres};

use crate::{
    command::{cargo, must},
    workspace::{root, target},
};

/// The crate whose queries are checked when it is compiled.
const CRATE: &str = "lorafleet-coordinator";

/// Checks the queries and renews their offline data.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing; fail when the offline data is not what the queries and the schema ask for.
    #[arg(long)]
    check: bool,
}

/// Starts a private Postgres, applies the migrations, and compiles the coordinator against it: sqlx's macros then write
/// a description of each query.
///
/// # Errors
/// No Postgres on this machine, a migration or query that is wrong, or offline data that is stale under `--check`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let postgres = Postgres::throwaway().context("cannot start a private Postgres")?;
    let url = postgres.fresh_database().context("cannot make a database")?;
    migrate(&url)?;
    let fresh = target().join("sqlx");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot clear {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    // The macros only run when the crate is compiled, and cargo compiles what is newer than its last output.
    let source = root().join("coordinator/src/lib.rs");
    let touched =
        fs::File::options().append(true).open(&source).and_then(|file| file.set_modified(SystemTime::now()));
    touched.with_context(|| format!("cannot touch {}", source.display()))?;
    let mut check = cargo(&["check", "--package", CRATE]);
    check.env("DATABASE_URL", &url).env("SQLX_OFFLINE_DIR", &fresh).env_remove("SQLX_OFFLINE");
    must(&mut check)?;
    let committed = root().join(".sqlx");
    let (new, old) = (names(&fresh)?, names(&committed)?);
    ensure!(!new.is_empty(), "no query was described; is {CRATE} still the crate with the queries?");
    if args.check {
        return compare(&fresh, &committed, &new, &old);
    }
    for stale in old.difference(&new) {
        fs::remove_file(committed.join(stale)).context("cannot remove stale offline data")?;
    }
    fs::create_dir_all(&committed).context("cannot make .sqlx")?;
    for name in &new {
        fs::copy(fresh.join(name), committed.join(name)).context("cannot write offline data")?;
    }
    eprintln!("{} queries described in .sqlx", new.len());
    Ok(ExitCode::SUCCESS)
}

/// Applies the migrations in order, as the coordinator does at its start.
fn migrate(url: &str) -> anyhow::Result<()> {
    let folder = root().join("migrations");
    let mut files: Vec<PathBuf> = names(&folder)?.into_iter().map(|name| folder.join(name)).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    ensure!(!files.is_empty(), "no migrations in {}", folder.display());
    let psql = Binaries::find()?.createdb().with_file_name("psql");
    let mut command = Command::new(if psql.is_file() { psql } else { "psql".into() });
    command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", url]);
    for file in &files {
        command.arg("--file").arg(file);
    }
    must(&mut command).context("the migrations do not apply to an empty database")
}

fn compare(
    fresh: &Path,
    committed: &Path,
    new: &BTreeSet<OsString>,
    old: &BTreeSet<OsString>,
) -> anyhow::Result<ExitCode> {
    let same = |name: &OsString| -> anyhow::Result<bool> {
        Ok(fs::read(fresh.join(name))? == fs::read(committed.join(name))?)
    };
    let mut changed = 0;
    for name in new.intersection(old) {
        changed += usize::from(!same(name)?);
    }
    let (missing, stale) = (new.difference(old).count(), old.difference(new).count());
    if missing + stale + changed > 0 {
        bail!(
            ".sqlx is not what the queries ask for: {missing} missing, {stale} stale, {changed} changed; run `cargo \
             xtask sqlx` and commit it"
        );
    }
    eprintln!("{} queries agree with .sqlx", new.len());
    Ok(ExitCode::SUCCESS)
}

/// The names of a folder's files; none when there is no folder.
fn names(folder: &Path) -> anyhow::Result<BTreeSet<OsString>> {
    if !folder.exists() {
        return Ok(BTreeSet::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}
