//! Places of a gang within this process, over real sockets, and a coordinator of a few lines that opens generations.

#![allow(dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_worker::{
    base_cache::Cache,
    collective::tcp::{Listener, TcpOptions},
    run::{Backlog, Reporter, Run, RunControl, Workshop},
};
use pb::finished::Outcome;
use tokio::runtime::Handle;

use crate::support::Fleet;

pub const JOB: &str = "jobs/0198b5c0-0000-7000-8000-000000000001";

/// Nothing that a test waits for takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where a member dies, as if its process were killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bomb {
    /// When it reports this step.
    Point(u64),
    /// When it reports the evaluation after this step.
    Evaluated(u64),
    /// When it gives its state to another.
    Give,
}

/// What a test does to the gang, once place `who` has reported step `after`.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    pub who: u32,
    pub after: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// An idle worker gets a place, and loads; the gang regroups once it is ready.
    Join,
    /// That place is to be given back.
    Leave(u32),
    /// All places are to be given back.
    LeaveAll,
    /// The gang regroups as it is.
    Regroup,
    /// That place is told to stop.
    Stop(u32),
    /// The coordinator goes away for good.
    Away,
}

/// What a place has said.
enum Said {
    Ready,
    Parted(pb::Parted),
    /// A step; the member waits until the sender is dropped.
    Point(u64, Sender<()>),
    Ended(Option<Box<Outcome>>),
}

/// What a place leaves behind.
#[derive(Default)]
pub struct Trace {
    pub points: BTreeMap<u64, pb::MetricPoint>,
    /// Key, kind, message.
    pub events: Vec<(String, String, String)>,
    pub checkpoints: Vec<pb::Checkpoint>,
    pub parted: Vec<pb::Parted>,
    pub outcome: Option<Outcome>,
}

impl Trace {
    pub fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|(_, kind, _)| kind.as_str()).collect()
    }

    pub fn result(&self) -> Option<&pb::JobResult> {
        match self.outcome.as_ref()? {
            Outcome::Succeeded(succeeded) => succeeded.result.as_ref(),
            _ => None,
        }
    }
}

struct Line {
    place: u32,
    bomb: Option<Bomb>,
    dead: AtomicBool,
    said: Mutex<Sender<(u32, Said)>>,
    trace: Arc<Mutex<Trace>>,
}

impl Line {
    fn say(&self, said: Said) {
        if !self.dead.load(Ordering::SeqCst) {
            drop(self.said.lock().unwrap().send((self.place, said)));
        }
    }

    fn trace(&self, change: impl FnOnce(&mut Trace)) {
        if !self.dead.load(Ordering::SeqCst) {
            change(&mut self.trace.lock().unwrap());
        }
    }

    fn pass(&self, bomb: Bomb) {
        if self.bomb == Some(bomb) {
            self.dead.store(true, Ordering::SeqCst);
            panic!("place {} dies as it was told to: {bomb:?}", self.place);
        }
    }
}

impl Reporter for Line {
    fn ready(&self, _ready: pb::Ready) {
        self.say(Said::Ready);
    }

    fn begun(&self, _fence: &pb::Fence, _index: u32) {}

    fn parted(&self, parted: pb::Parted) {
        self.trace(|trace| trace.parted.push(parted.clone()));
        self.say(Said::Parted(parted));
    }

    fn point(&self, point: pb::MetricPoint) {
        self.pass(Bomb::Point(point.step));
        let (go, wait) = mpsc::channel();
        self.say(Said::Point(point.step, go));
        self.trace(|trace| drop(trace.points.insert(point.step, point)));
        // Returns when the coordinator has done what the test wants after this step.
        assert!(wait.recv().is_err(), "nothing is sent");
    }

    fn event(&self, key: &str, kind: &str, message: &str) {
        if let Some(step) = key.strip_prefix("evaluated/") {
            self.pass(Bomb::Evaluated(step.parse().unwrap()));
        }
        self.trace(|trace| trace.events.push((key.into(), kind.into(), message.into())));
    }

    fn own_event(&self, kind: &str, message: &str) {
        self.trace(|trace| trace.events.push((String::new(), kind.into(), message.into())));
    }

    fn checkpoint(&self, checkpoint: pb::Checkpoint) {
        self.trace(|trace| trace.checkpoints.push(checkpoint));
    }

    fn unacknowledged(&self) -> Backlog {
        self.pass(Bomb::Give);
        Backlog { points: self.trace.lock().unwrap().points.values().cloned().collect(), events: Vec::new() }
    }

    fn take_over(&self, backlog: Backlog) {
        self.trace(|trace| {
            for point in backlog.points {
                trace.points.entry(point.step).or_insert(point);
            }
        });
    }
}

struct Place {
    control: Arc<RunControl>,
    address: String,
    trace: Arc<Mutex<Trace>>,
}

/// One attempt.
pub struct Gang<'a> {
    fleet: &'a Fleet,
    spec: pb::JobSpec,
    attempt: u32,
    resume: Vec<pb::Checkpoint>,
    places: BTreeMap<u32, Place>,
    said: Receiver<(u32, Said)>,
    line: Sender<(u32, Said)>,
    generation: u32,
    members: Vec<u32>,
    live: BTreeSet<u32>,
    ready: BTreeSet<u32>,
    parted: BTreeSet<u32>,
    away: bool,
}

impl<'a> Gang<'a> {
    pub fn new(fleet: &'a Fleet, spec: &pb::JobSpec, attempt: u32, resume: &[pb::Checkpoint]) -> Self {
        let (line, said) = mpsc::channel();
        Self {
            fleet,
            spec: spec.clone(),
            attempt,
            resume: resume.to_vec(),
            places: BTreeMap::new(),
            said,
            line,
            generation: 0,
            members: Vec::new(),
            live: BTreeSet::new(),
            ready: BTreeSet::new(),
            parted: BTreeSet::new(),
            away: false,
        }
    }

    /// How many generations there were.
    pub fn generations(&self) -> u32 {
        self.generation
    }

    fn fence(&self, generation: u32) -> pb::Fence {
        let id = format!("{:08x}{generation:08x}", self.attempt);
        pb::Fence { attempt: self.attempt, generation, generation_id: id }
    }

    /// One more place, which loads.
    pub fn place(&mut self, bomb: Option<Bomb>) {
        let place = self.places.len() as u32 + 1;
        let tcp = TcpOptions { silence: Duration::from_secs(30), ..TcpOptions::default() };
        let listener = Listener::bind("127.0.0.1:0", tcp.handshake).unwrap();
        let address = listener.local_address().to_string();
        let cache = self.fleet.dir.path().join(format!("{}-{place}", self.attempt));
        let workshop = Workshop {
            cache: Cache::open(&cache).unwrap(),
            listener,
            tcp,
            alone_limit: Duration::from_secs(1),
            pool: rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(),
            kind: "test".to_owned(),
            runtime: Handle::current(),
            background: Handle::current(),
        };
        let fence = self.fence(0);
        let control = Arc::new(RunControl::new(fence.clone()));
        let trace = Arc::new(Mutex::default());
        let line = Arc::new(Line {
            place,
            bomb,
            dead: AtomicBool::new(false),
            said: Mutex::new(self.line.clone()),
            trace: Arc::clone(&trace),
        });
        let assign = pb::Assign {
            job: JOB.to_owned(),
            fence: Some(fence),
            spec: Some(self.spec.clone()),
            place,
            adapter: None,
        };
        let run = Run {
            workshop: Arc::new(workshop),
            store: self.fleet.store.clone(),
            assign,
            control: control.clone(),
            reporter: line.clone(),
        };
        let told = self.line.clone();
        thread::spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run.execute())).ok();
            drop(told.send((place, Said::Ended(outcome.map(Box::new)))));
        });
        self.live.insert(place);
        self.places.insert(place, Place { control, address, trace });
    }

    /// Runs the gang until every place has ended, doing what the test wants; returns what each place leaves behind.
    pub fn run(&mut self, deeds: &[Deed]) -> BTreeMap<u32, Trace> {
        let mut deeds = deeds.to_vec();
        // Members that wait for a newcomer to be ready.
        let mut held = Vec::new();
        while !self.live.is_empty() {
            let (place, said) =
                self.said.recv_timeout(PATIENCE).expect("what the test waits for does not come");
            match said {
                Said::Ready => {
                    self.ready.insert(place);
                    if !self.members.is_empty() {
                        self.regroup();
                    }
                    held.clear();
                }
                Said::Parted(parted) => {
                    if parted.fence == Some(self.fence(self.generation)) {
                        self.parted.insert(place);
                    }
                }
                Said::Point(step, go) => {
                    let due = |deed: &Deed| deed.who == place && deed.after == step;
                    let now: Vec<Deed> = deeds.extract_if(.., |deed| due(deed)).collect();
                    for deed in now {
                        self.act(deed.what);
                        if matches!(deed.what, What::Join) {
                            held.push(go.clone());
                        }
                    }
                }
                Said::Ended(outcome) => {
                    self.places[&place].trace.lock().unwrap().outcome = outcome.map(|outcome| *outcome);
                    self.live.remove(&place);
                    self.ready.remove(&place);
                }
            }
            self.open();
        }
        let trace = |place: &Place| std::mem::take(&mut *place.trace.lock().unwrap());
        self.places.iter().map(|(&number, place)| (number, trace(place))).collect()
    }

    fn act(&mut self, what: What) {
        match what {
            What::Join => self.place(None),
            What::Leave(place) => self.places[&place].control.leave(),
            What::LeaveAll => self.live.iter().for_each(|place| self.places[place].control.leave()),
            What::Regroup => self.regroup(),
            What::Stop(place) => self.places[&place].control.stop(pb::StopReason::Expelled),
            What::Away => {
                self.away = true;
                self.places.values().for_each(|place| place.control.set_connected(false));
            }
        }
    }

    fn regroup(&self) {
        for place in &self.members {
            self.places[place].control.regroup(self.fence(self.generation));
        }
    }

    /// Opens the next generation once every live member has parted, or all have loaded for the first.
    fn open(&mut self) {
        let survivors: Vec<u32> =
            self.members.iter().copied().filter(|place| self.live.contains(place)).collect();
        let waits = match self.members.is_empty() {
            true => self.live.iter().any(|place| !self.ready.contains(place)),
            false => survivors.iter().any(|place| !self.parted.contains(place)),
        };
        if waits || self.away || self.live.is_empty() {
            return;
        }
        let newcomers = self.ready.iter().copied().filter(|place| !self.members.contains(place));
        let members: Vec<u32> = survivors.iter().copied().chain(newcomers).collect();
        if members.is_empty() {
            return;
        }
        self.members = members;
        self.parted.clear();
        self.generation += 1;
        let member = |(&place, index): (&u32, u32)| pb::Member {
            index,
            worker: format!("w{place}"),
            address: self.places[&place].address.clone(),
            place,
        };
        let begin = pb::Begin {
            job: JOB.to_owned(),
            fence: Some(self.fence(self.generation)),
            members: self.members.iter().zip(0..).map(member).collect(),
            resume: self.resume.clone(),
        };
        for place in &self.members {
            self.places[place].control.begin(begin.clone());
        }
    }
}
