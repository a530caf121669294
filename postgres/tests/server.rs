//! A private Postgres over its life, with the real programs.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use lorafleet_postgres::{Error, Options, Postgres};
use sqlx::{Connection, PgConnection, Row};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn number(url: &str, sql: &'static str) -> Result<i32, sqlx::Error> {
    runtime().block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let row = sqlx::query(sql).fetch_one(&mut connection).await?;
        row.try_get(0)
    })
}

fn execute(url: &str, sql: &'static str) {
    runtime().block_on(async {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    });
}

fn set_mode(dir: &Path, mode: u32) {
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Kept data, but without waiting for the disk and with a copied template: the same code, faster.
fn kept() -> Options {
    Options::throwaway()
}

#[test]
fn throwaway_servers_live_side_by_side_and_leave_nothing() {
    let (one, two) = (Postgres::throwaway().unwrap(), Postgres::throwaway().unwrap());
    assert_ne!(one.dir(), two.dir());
    for server in [&one, &two] {
        let url = server.fresh_database().unwrap();
        assert_eq!(number(&url, "select 41 + 1").unwrap(), 42);
    }
    let dir = one.dir().to_path_buf();
    drop(one);
    assert!(!dir.exists());
}

#[test]
fn data_survives_stop_and_start() {
    let parent = tempfile::tempdir().unwrap();
    set_mode(parent.path(), 0o755);
    let dir = parent.path().join("postgres");
    let options = Options::default(); // the durable one, with its own initdb
    let mut server = Postgres::start(&dir, options.clone()).unwrap();
    server.createdb("jobs").unwrap();
    server.createdb("jobs").unwrap(); // again: no error
    let url = server.url("jobs");
    execute(&url, "create table t as select 7 as x");

    server.stop().unwrap();
    assert!(number(&url, "select x from t").is_err());
    server.start_again().unwrap();
    assert_eq!(number(&url, "select x from t").unwrap(), 7);

    assert!(matches!(Postgres::start(&dir, options.clone()), Err(Error::InUse { .. })));
    drop(server);
    let server = Postgres::start(&dir, options).unwrap();
    assert_eq!(number(&server.url("jobs"), "select x from t").unwrap(), 7);
}

#[test]
fn a_folder_that_only_root_can_reach_still_works() {
    let parent = tempfile::tempdir().unwrap();
    set_mode(parent.path(), 0o700);
    let dir = parent.path().join("postgres");
    let server = Postgres::start(&dir, kept()).unwrap();
    assert_eq!(number(&server.url("postgres"), "select 1").unwrap(), 1);
    drop(server);
    let server = Postgres::start(&dir, kept()).unwrap();
    assert_eq!(number(&server.url("postgres"), "select 1").unwrap(), 1);
    drop(server);
    if let Ok(place) = std::fs::read_to_string(dir.join("relocated")) {
        std::fs::remove_dir_all(place).unwrap();
    }
}

/// In a process of its own: starts a server in the folder, says so, and waits to be killed.
#[test]
fn owner_that_is_killed() {
    let Some(dir) = std::env::var_os(OWNED) else { return };
    let server = Postgres::start(dir.as_ref(), kept()).unwrap();
    std::fs::write(server.dir().join("started"), "").unwrap();
    std::thread::sleep(LIMIT);
}

const OWNED: &str = "LORAFLEET_TEST_OWNED_POSTGRES";
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_killed_owner_is_survived() {
    let parent = tempfile::tempdir().unwrap();
    set_mode(parent.path(), 0o755);
    let dir = parent.path().join("postgres");
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed"])
        .env(OWNED, &dir)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !dir.join("started").exists() {
        assert!(start.elapsed() < LIMIT && owner.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(Postgres::start(&dir, kept()), Err(Error::InUse { .. })));
    owner.kill().unwrap(); // SIGKILL
    owner.wait().unwrap();
    let again = Postgres::start(&dir, kept()).unwrap();
    assert_eq!(number(&again.url("postgres"), "select 1").unwrap(), 1);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let mut options = Options::throwaway();
    options.settings.push(("shared_buffers".into(), "lots".into()));
    let error = Postgres::throwaway_with(options).unwrap_err().to_string();
    assert!(error.contains("shared_buffers"), "{error}");
}
