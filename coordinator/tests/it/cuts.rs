//! Coordinators whose connections to Postgres break between any two statements, before or after either: what is
//! accepted is there, once, and is done, once.

use std::{
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use lorafleet_proto::v1 as pb;
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
};

use crate::{
    bed::{Bed, Coordinator, soon},
    worker::Worker,
};

const JOBS: u64 = 24;
const COORDINATORS: u64 = 3;
/// A connection lives for at most so many messages: a leader's round has about a hundred, and must come through at times.
const LONGEST_LIFE: u64 = 400;

/// A way to Postgres that breaks: each connection after a number of the client's messages that a seed says, half of
/// them with the last message delivered and its answer lost.
struct Cutter {
    url: String,
    armed: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Cutter {
    async fn start(bed: &Bed, seed: u64) -> Self {
        let direct = PgConnectOptions::from_str(&bed.database_url).expect("a URL");
        let folder = direct.get_socket().expect("a private Postgres has a socket");
        let socket = folder.join(format!(".s.PGSQL.{}", direct.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (user, database) = (direct.get_username(), direct.get_database().expect("a database").to_owned());
        let address = listener.local_addr().expect("an address");
        let url = format!("postgres://{user}@{address}/{database}?sslmode=disable");
        let (armed, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_armed, counted) = (Arc::clone(&armed), Arc::clone(&cuts));
        let accepting = tokio::spawn(async move {
            for number in 0.. {
                let (client, _) = listener.accept().await.expect("a connection");
                let server = UnixStream::connect(&socket).await.expect("Postgres");
                let draw = mix(seed ^ mix(number));
                let fate = Fate { after: 1 + draw % LONGEST_LIFE, delivered: draw >> 63 == 1 };
                let (is_armed, counted) = (Arc::clone(&is_armed), Arc::clone(&counted));
                tokio::spawn(async move {
                    if relay(client, server, fate, &is_armed).await == End::Cut {
                        counted.fetch_add(1, SeqCst);
                    }
                });
            }
        });
        Self { url, armed, cuts, accepting }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// When a connection breaks, and whether the message that it breaks at still arrives.
#[derive(Clone, Copy)]
struct Fate {
    after: u64,
    delivered: bool,
}

#[derive(PartialEq, Eq)]
enum End {
    Cut,
    Closed,
}

/// splitmix64: numbers that look random, the same for the same seed.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Passes messages on until either side closes, or fate strikes. Messages before it is armed do not count.
async fn relay(client: TcpStream, server: UnixStream, fate: Fate, armed: &AtomicBool) -> End {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        End::Closed
    };
    let questions = async {
        // The first message has no type.
        let (mut head, mut count) = (4, 0);
        while let Some(message) = message(&mut from_client, head).await {
            head = 5;
            count += u64::from(armed.load(SeqCst));
            let cut = count >= fate.after;
            if (!cut || fate.delivered) && to_server.write_all(&message).await.is_err() {
                return End::Closed;
            }
            if cut {
                return End::Cut;
            }
        }
        End::Closed
    };
    tokio::select! {
        end = answers => end,
        end = questions => end,
    }
}

/// One message of the client, whole. `None`: it has closed.
async fn message(client: &mut (impl tokio::io::AsyncRead + Unpin), head: usize) -> Option<Vec<u8>> {
    let mut message = vec![0; head];
    client.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[head - 4..].try_into().expect("four bytes"));
    let body = usize::try_from(length).expect("a length").checked_sub(4)?;
    message.resize(head + body, 0);
    client.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}

/// Submits a job until somebody has accepted it, at one coordinator after the other, and then once more.
async fn submit(coordinators: &[Coordinator], spec: pb::JobSpec, draw: u64) -> String {
    let request_id = uuid::Uuid::from_u64_pair(draw, draw).to_string();
    let request = pb::CreateJobRequest { spec: Some(spec), request_id, ..Default::default() };
    let mut at = usize::try_from(draw % COORDINATORS).expect("small");
    let mut names = Vec::new();
    while names.len() < 2 {
        at = (at + 1) % coordinators.len();
        match coordinators[at].jobs().await.create_job(request.clone()).await {
            Ok(job) => names.push(job.into_inner().name),
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
    }
    assert_eq!(names[0], names[1], "a repeated request is the same job");
    names.swap_remove(0)
}

/// Takes what it is given to its end, for ever.
async fn work(mut worker: Worker) {
    loop {
        let (place, _) = worker.start().await;
        for step in 1..=3 {
            worker.progress(&place, step..=step).await;
        }
        worker.checkpoint(&place, 3).await;
        worker.finish(&place, place.succeeded(100)).await;
    }
}

/// What must be nowhere, at any time.
const NEVER: [(&str, &str); 7] = [
    ("a request with two jobs", "select count(*) - count(distinct request_id) from jobs"),
    (
        "events that are not dense",
        "select count(*) from jobs j left join lateral (
           select count(*) as count, min(number) as first, max(number) as last from job_events e where e.job_id = j.job_id
         ) e on true where (e.count, e.first, e.last) is distinct from (j.last_event, 1, j.last_event)",
    ),
    (
        "a job that was not submitted or ended twice",
        "select count(*) from jobs j left join lateral (
           select count(*) filter (where kind = 'created') as created,
                  count(*) filter (where kind in ('succeeded', 'failed', 'cancelled')) as ended
           from job_events e where e.job_id = j.job_id
         ) e on true where e.created <> 1 or e.ended <> case when j.end_time is null then 0 else 1 end",
    ),
    (
        "a job with two live attempts, or whose live attempt is not its own",
        "select count(*) from jobs j left join lateral (
           select count(*) as count, max(attempt) as live from attempts a where a.job_id = j.job_id and a.state = 'RUNNING'
         ) a on true where a.count <> case when j.state = 'RUNNING' then 1 else 0 end or a.live <> j.attempt",
    ),
    (
        "a slot with two live places",
        "select count(*) from (select from places where live group by worker_id, slot having count(*) > 1) taken",
    ),
    (
        "an attempt that succeeded beside another one",
        "select count(*) from (select from attempts where state = 'SUCCEEDED' group by job_id having count(*) > 1) twice",
    ),
    (
        "a place without a start, or an attempt that started twice",
        "select count(*) from attempts a left join lateral (
           select count(*) as count from job_events e where e.job_id = a.job_id and e.attempt = a.attempt and e.kind = 'started'
         ) e on true where e.count <> 1",
    ),
];

async fn check(bed: &Bed) {
    for (what, sql) in NEVER {
        assert_eq!(bed.count(sql).await, 0, "{what}");
    }
}

async fn run(seed: u64) {
    let bed = Bed::new().await;
    let (mut cutters, mut coordinators, mut workers) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..COORDINATORS {
        let cutter = Cutter::start(&bed, mix(seed) ^ number).await;
        let urls =
            ["--database-url", &cutter.url, "--database-direct-url", &bed.database_url, "--lease", "1h"];
        coordinators.push(bed.coordinator_with(&urls).await);
        cutters.push(cutter);
    }
    for (number, coordinator) in coordinators.iter().enumerate() {
        let worker = Worker::join(coordinator, &format!("w{number}")).await;
        workers.push(tokio::spawn(work(worker)));
    }
    cutters.iter().for_each(|cutter| cutter.armed.store(true, SeqCst));
    let submits = (0..JOBS).map(|job| submit(&coordinators, bed.spec(1, 1), mix(seed ^ (job << 32))));
    let accepted = futures::future::join_all(submits).await;
    soon("all jobs to be done", || async {
        check(&bed).await;
        assert!(workers.iter().all(|worker| !worker.is_finished()), "a worker gave up");
        let done = bed.count("select count(*) from jobs where state = 'SUCCEEDED'").await;
        (done == i64::try_from(JOBS).expect("small")).then_some(())
    })
    .await;
    let cuts: u64 = cutters.iter().map(|cutter| cutter.cuts.load(SeqCst)).sum();
    assert!(cuts > 10, "{cuts} cuts are no trial");
    check(&bed).await;
    assert_eq!(bed.count("select count(*) from jobs").await, i64::try_from(JOBS).expect("small"));
    cutters.iter().for_each(|cutter| cutter.armed.store(false, SeqCst));
    for job in &accepted {
        let is_there = async || {
            let request = pb::GetJobRequest { name: job.clone() };
            coordinators[0].jobs().await.get_job(request).await.ok()
        };
        assert_eq!(
            soon("a job", is_there).await.into_inner().attempt,
            1,
            "nothing was lost, so nothing began anew"
        );
    }
    workers.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn cut_connections_lose_and_double_nothing() {
    run(1).await;
}

#[tokio::test]
async fn cut_connections_lose_and_double_nothing_with_another_seed() {
    // For whoever looks for more: any number.
    let seed = std::env::var("LORAFLEET_CUT_SEED").ok().and_then(|seed| seed.parse().ok());
    run(seed.unwrap_or(2)).await;
}
