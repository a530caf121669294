//! Faults, done to a running fleet and undone.

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::{
    effect::{Effect, Gauge},
    kind::Kind,
    memory::MemoryLimit,
    netns::Host,
    plan::Fault,
    postgres::{Session, exhaust, terminate_others},
    proxy::Mode,
    rig::{Rig, Start},
};
use crate::s3::S3Fault;

/// A member that stands still for so long is noticed by its peers, also on a busy machine.
const BEYOND_SILENCE: Duration = Duration::from_secs(5);
/// A worker without a heartbeat for so long has lost its lease.
const BEYOND_LEASE: Duration = Duration::from_secs(6);
const LATENCY: Duration = Duration::from_millis(150);
const SLOW_STORE: Duration = Duration::from_millis(800);
const SLOW_KILOBITS: u32 = 4000;
const HOUR: i64 = 3600;
/// More than a worker needs to stand still, less than it needs to train.
const MEMORY: u64 = 4 << 20;

/// A fault that has been done.
pub struct Injected {
    pub kind: Kind,
    pub effect: Effect,
    /// When it is to be undone.
    pub until: Instant,
    undo: Undo,
}

/// How a fault is undone.
enum Undo {
    Nothing,
    ContinueWorker(String),
    ContinueCoordinator(usize),
    StartCoordinator(usize),
    LinkUp(Host),
    Mend(Vec<(Host, IpAddr)>),
    FullRate(Host),
    CoordinatorLines,
    DatabaseLine,
    StartPostgres,
    Release(Vec<Session>),
    Store,
    RightClock(String),
    Group(MemoryLimit),
}

/// What a fault turned out to be.
struct Done {
    gauge: Gauge,
    undo: Undo,
    hold: Duration,
}

impl Done {
    fn now(gauge: Gauge) -> Done {
        Done { gauge, undo: Undo::Nothing, hold: Duration::ZERO }
    }
}

/// Does the fault. `events`: how many the job has so far.
pub async fn inject(rig: &mut Rig, fault: &Fault, events: u64) -> Result<Injected> {
    let before = rig.reading_places();
    let done = match fault.kind {
        Kind::KillWorker
        | Kind::StopWorker
        | Kind::DrainWorker
        | Kind::KillRepeatedly
        | Kind::KillAll
        | Kind::AddWorker
        | Kind::LimitMemory
        | Kind::JumpClock
        | Kind::FillDisk => worker(rig, fault).await?,
        Kind::KillCoordinator | Kind::StopCoordinator | Kind::RollCoordinators => {
            coordinator(rig, fault).await?
        }
        Kind::LinkDown | Kind::CutToPeer | Kind::CutPeers | Kind::CutToCoordinator | Kind::SlowLink => {
            network(rig, fault)?
        }
        Kind::ResetCoordinator | Kind::StallCoordinator => coordinator_lines(rig, fault),
        Kind::RestartPostgres
        | Kind::TerminateBackends
        | Kind::ExhaustConnections
        | Kind::IdleTransaction
        | Kind::LongReader
        | Kind::SlowPostgres
        | Kind::StallPostgres => match database(rig, fault) {
            Err(_) if Session::open(&rig.postgres.socket()).is_err() => Done::now(Gauge::Prevented),
            done => done?,
        },
        Kind::SlowStore | Kind::FailingStore | Kind::HalfRead | Kind::HalfWrite | Kind::LostSuccess => {
            store(rig, fault)
        }
        Kind::Failpoint(_) => bail!("failpoints are set when a worker starts"),
    };
    let effect = Effect { gauge: done.gauge, before, after: None, events, at_step: fault.at_step };
    Ok(Injected { kind: fault.kind, effect, until: Instant::now() + done.hold, undo: done.undo })
}

/// The worker that a fault means.
fn victim(rig: &Rig, target: u64) -> Result<String> {
    let names: Vec<&String> = rig.workers.keys().collect();
    let place = usize::try_from(target)? % names.len().max(1);
    names.get(place).map(|name| (*name).clone()).context("no worker is there")
}

async fn worker(rig: &mut Rig, fault: &Fault) -> Result<Done> {
    if fault.kind == Kind::AddWorker || fault.kind == Kind::FillDisk {
        let full_disk = fault.kind == Kind::FillDisk;
        let name = rig.add_worker(&Start { full_disk, ..Start::default() })?;
        return Ok(Done::now(if full_disk { Gauge::DiskFull(name) } else { Gauge::Names(vec![name]) }));
    }
    let name = victim(rig, fault.target)?;
    let gauge = Gauge::Names(vec![name.clone()]);
    let process = &mut rig.workers.get_mut(&name).context("no such worker")?.process;
    match fault.kind {
        Kind::KillWorker => process.kill()?,
        Kind::DrainWorker => process.signal(Signal::TERM)?,
        Kind::StopWorker => {
            process.signal(Signal::STOP)?;
            return Ok(Done { gauge, undo: Undo::ContinueWorker(name), hold: BEYOND_SILENCE });
        }
        Kind::LimitMemory => {
            let group = MemoryLimit::set(process.id(), MEMORY)?;
            return Ok(Done { gauge, undo: Undo::Group(group), hold: fault.hold });
        }
        Kind::JumpClock => return jump(rig, fault, name),
        Kind::KillAll => {
            rig.workers.values_mut().try_for_each(|worker| worker.process.kill())?;
            return Ok(Done::now(Gauge::AllLost));
        }
        _ => return kill_repeatedly(rig, name).await,
    }
    Ok(Done::now(gauge))
}

fn jump(rig: &Rig, fault: &Fault, name: String) -> Result<Done> {
    let seconds = if fault.target.is_multiple_of(2) { HOUR } else { -HOUR };
    let clock = rig.workers.get(&name).and_then(|worker| worker.clock.as_ref());
    clock.context("no C compiler made the clock library")?.jump(seconds)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() as i64;
    let gauge = Gauge::ClockAt { worker: name.clone(), seconds: now + seconds };
    Ok(Done { gauge, undo: Undo::RightClock(name), hold: fault.hold })
}

/// The worker, then one that replaces it, then another old one if any is left.
async fn kill_repeatedly(rig: &mut Rig, first: String) -> Result<Done> {
    let mut names = vec![first];
    for round in 0..3 {
        let name = names[round].clone();
        if let Some(worker) = rig.workers.get_mut(&name) {
            worker.process.kill()?;
        }
        rig.reap();
        if round < 2 {
            let newcomer = rig.add_worker(&Start::default())?;
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let old = rig.workers.keys().find(|name| **name != newcomer && !names.contains(name)).cloned();
            names.push(if round == 0 { newcomer } else { old.unwrap_or(newcomer) });
        }
    }
    Ok(Done::now(Gauge::Names(names)))
}

async fn coordinator(rig: &mut Rig, fault: &Fault) -> Result<Done> {
    let at = usize::try_from(fault.target)? % rig.coordinators.len();
    match fault.kind {
        Kind::KillCoordinator => {
            rig.coordinators[at].process.kill()?;
            Ok(Done { gauge: Gauge::StreamsLost, undo: Undo::StartCoordinator(at), hold: fault.hold / 2 })
        }
        Kind::StopCoordinator => {
            rig.coordinators[at].process.signal(Signal::STOP)?;
            let gauge = Gauge::Silent(at);
            Ok(Done { gauge, undo: Undo::ContinueCoordinator(at), hold: fault.hold })
        }
        _ => {
            for at in 0..rig.coordinators.len() {
                rig.coordinators[at].process.terminate(Duration::from_secs(30))?;
                rig.restart_coordinator(at)?;
                rig.client().answers(at).await?;
            }
            Ok(Done::now(Gauge::StreamsLost))
        }
    }
}

fn network(rig: &Rig, fault: &Fault) -> Result<Done> {
    let name = victim(rig, fault.target)?;
    let host_of = |name: &str| rig.workers.get(name).and_then(|worker| worker.host.clone());
    let host = host_of(&name).context("the worker has no namespace")?;
    let peers: Vec<Host> =
        rig.workers.keys().filter(|peer| **peer != name).filter_map(|n| host_of(n)).collect();
    let peer = peers.get(usize::try_from(fault.target >> 8)? % peers.len().max(1));
    let names = |undo, hold| Ok(Done { gauge: Gauge::Names(vec![name.clone()]), undo, hold });
    match fault.kind {
        Kind::LinkDown => {
            host.set_link(false)?;
            names(Undo::LinkUp(host), BEYOND_LEASE)
        }
        Kind::CutToCoordinator => {
            let gateway = rig.coordinators[0].address.ip();
            host.cut(gateway)?;
            names(Undo::Mend(vec![(host, gateway)]), BEYOND_LEASE)
        }
        Kind::SlowLink => {
            host.set_rate(Some(SLOW_KILOBITS))?;
            Ok(Done { gauge: Gauge::SlowSteps, undo: Undo::FullRate(host), hold: fault.hold })
        }
        _ => {
            let peer = peer.context("the worker has no peer")?.clone();
            let mut cuts = vec![(host.clone(), IpAddr::from(peer.ip))];
            if fault.kind == Kind::CutPeers {
                cuts.push((peer, host.ip.into()));
            }
            cuts.iter().try_for_each(|(from, to)| from.cut(*to))?;
            Ok(Done { gauge: Gauge::AnyChange, undo: Undo::Mend(cuts), hold: BEYOND_SILENCE })
        }
    }
}

fn coordinator_lines(rig: &Rig, fault: &Fault) -> Done {
    if fault.kind == Kind::ResetCoordinator {
        rig.coordinators.iter().for_each(|coordinator| coordinator.proxy.reset());
        return Done {
            gauge: Gauge::CoordinatorLines,
            undo: Undo::Nothing,
            hold: Duration::from_millis(300),
        };
    }
    rig.coordinators.iter().for_each(|coordinator| coordinator.proxy.set(Mode::stalled()));
    Done { gauge: Gauge::CoordinatorLines, undo: Undo::CoordinatorLines, hold: fault.hold }
}

fn database(rig: &mut Rig, fault: &Fault) -> Result<Done> {
    let socket = rig.postgres.socket();
    match fault.kind {
        Kind::RestartPostgres => {
            rig.postgres.stop()?;
            Ok(Done { gauge: Gauge::DatabaseConnections, undo: Undo::StartPostgres, hold: fault.hold / 2 })
        }
        Kind::TerminateBackends => {
            terminate_others(&socket)?;
            let hold = Duration::from_millis(500);
            Ok(Done { gauge: Gauge::DatabaseConnections, undo: Undo::Nothing, hold })
        }
        Kind::ExhaustConnections => {
            let mut held = exhaust(&socket);
            if let Some(session) = held.first_mut() {
                session.query(
                    "select pg_terminate_backend(pid) from pg_stat_activity
                     where backend_type = 'client backend' and application_name <> 'chaos'",
                )?;
            }
            held.extend(exhaust(&socket));
            Ok(Done { gauge: Gauge::DatabaseConnections, undo: Undo::Release(held), hold: fault.hold / 2 })
        }
        Kind::IdleTransaction => {
            let mut session = Session::open(&socket)?;
            session.query("begin")?;
            session.query("select count(*) from (select 1 from jobs for update) held")?;
            Ok(Done { gauge: Gauge::Waiting, undo: Undo::Release(vec![session]), hold: fault.hold / 2 })
        }
        Kind::LongReader => {
            let mut session = Session::open(&socket)?;
            session.query("begin isolation level repeatable read")?;
            session.query("select (select count(*) from jobs), (select count(*) from job_events)")?;
            Ok(Done { gauge: Gauge::Overtaken, undo: Undo::Release(vec![session]), hold: fault.hold })
        }
        _ => {
            let stalls = fault.kind == Kind::StallPostgres;
            rig.database.set(if stalls { Mode::stalled() } else { Mode::slow(LATENCY) });
            Ok(Done { gauge: Gauge::DatabaseLine, undo: Undo::DatabaseLine, hold: fault.hold })
        }
    }
}

fn store(rig: &Rig, fault: &Fault) -> Done {
    rig.store.faults().set(match fault.kind {
        Kind::SlowStore => S3Fault::Slow(SLOW_STORE),
        Kind::FailingStore => S3Fault::Status(if fault.target.is_multiple_of(2) { 500 } else { 503 }),
        Kind::HalfRead => S3Fault::HalfRead,
        Kind::HalfWrite => S3Fault::HalfWrite,
        _ => S3Fault::LostSuccess,
    });
    Done { gauge: Gauge::Store, undo: Undo::Store, hold: fault.hold }
}

impl Injected {
    /// Undoes it, after a last look at what it did.
    pub async fn heal(&mut self, rig: &mut Rig) -> Result<()> {
        self.effect.look(rig).await;
        match std::mem::replace(&mut self.undo, Undo::Nothing) {
            Undo::Nothing => {}
            Undo::Group(group) => drop(group),
            Undo::Release(sessions) => drop(sessions),
            Undo::ContinueWorker(name) => {
                // It may have been killed by another fault meanwhile.
                if let Some(worker) = rig.workers.get(&name) {
                    worker.process.signal(Signal::CONT)?;
                }
            }
            Undo::ContinueCoordinator(at) => rig.coordinators[at].process.signal(Signal::CONT)?,
            Undo::StartCoordinator(at) => rig.restart_coordinator(at)?,
            Undo::LinkUp(host) => host.set_link(true)?,
            Undo::Mend(cuts) => cuts.iter().try_for_each(|(from, to)| from.mend(*to))?,
            Undo::FullRate(host) => host.set_rate(None)?,
            Undo::CoordinatorLines => rig.coordinators.iter().for_each(|c| c.proxy.set(Mode::default())),
            Undo::DatabaseLine => rig.database.set(Mode::default()),
            Undo::StartPostgres => rig.postgres.start_again()?,
            Undo::Store => rig.store.faults().set(S3Fault::None),
            Undo::RightClock(name) => {
                if let Some(clock) = rig.workers.get(&name).and_then(|worker| worker.clock.as_ref()) {
                    clock.jump(0)?;
                }
            }
        }
        Ok(())
    }
}
