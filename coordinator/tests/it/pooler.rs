//! A transaction-mode pooler between the coordinators and Postgres.

use std::{
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    str::FromStr as _,
};

use lorafleet_proto::v1::JobState;
use sqlx::postgres::PgConnectOptions;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    bed::{Bed, soon},
    worker::Worker,
};

/// A running PgBouncer; ends when dropped.
struct Pooler {
    process: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// In front of a bed's database, with fewer connections than its clients have.
    async fn start(bed: &Bed) -> Self {
        let direct = PgConnectOptions::from_str(&bed.database_url).expect("a URL");
        let socket = direct.get_socket().expect("a private Postgres has a socket").clone();
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n\
             max_prepared_statements = 100\nserver_lifetime = 1\n",
            socket.display(),
            direct.get_port(),
            direct.get_username(),
        );
        std::fs::write(&config, text).expect("written");
        let owner = std::fs::metadata(&socket).expect("the socket's folder");
        std::os::unix::fs::chown(folder.path(), Some(owner.uid()), Some(owner.gid())).expect("given away");
        std::os::unix::fs::chown(&config, Some(owner.uid()), Some(owner.gid())).expect("given away");
        let program = std::env::var_os("PGBOUNCER").map_or_else(|| "pgbouncer".into(), PathBuf::from);
        let mut command = Command::new(program);
        command.arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        // Postgres refuses root and lets in whoever can reach its socket; PgBouncer refuses root, too.
        if std::fs::metadata(folder.path()).expect("a folder").uid() != owner_of_this_process() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let process = command.spawn().expect("PgBouncer; PGBOUNCER names it");
        let address = format!("127.0.0.1:{port}");
        soon("PgBouncer", || async { TcpStream::connect(&address).await.ok() }).await;
        let database = direct.get_database().expect("a database").to_owned();
        Self {
            process,
            url: format!("postgres://{}@{address}/{database}", direct.get_username()),
            _folder: folder,
        }
    }
}

fn owner_of_this_process() -> u32 {
    std::fs::metadata("/proc/self").expect("this process").uid()
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer 1.21 or later, on the PATH or named by PGBOUNCER"]
async fn two_coordinators_work_through_a_pooler_in_transaction_mode() {
    let bed = Bed::new().await;
    let pooler = Pooler::start(&bed).await;
    let pooled = ["--database-url", &pooler.url, "--database-direct-url", &bed.database_url];
    let (one, two) = (bed.coordinator_with(&pooled).await, bed.coordinator_with(&pooled).await);
    let (mut a, mut b) = (Worker::join(&one, "a").await, Worker::join(&two, "b").await);
    for round in 0..4 {
        let names = [one.submit(bed.spec(1, 1)).await, two.submit(bed.spec(1, 1)).await];
        let (first, second) = tokio::join!(a.start(), b.start());
        for (worker, (place, _)) in [(&mut a, first), (&mut b, second)] {
            for step in 1..=20 {
                worker.progress(&place, step..=step).await;
            }
            worker.checkpoint(&place, 10).await;
            worker.finish(&place, place.succeeded(100)).await;
        }
        for name in names {
            let done = one.until_state(&name, JobState::Succeeded).await;
            assert_eq!((done.attempt, two.points(&name).await.len()), (1, 20), "round {round}");
        }
    }
}
