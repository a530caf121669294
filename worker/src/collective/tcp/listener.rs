//! One listening socket per worker process: checks each caller's handshake and hands it to the run that it wants.

use std::{
    cmp::Ordering,
    io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use lorafleet_proto::{GANG_PROTOCOL_VERSION, v1 as pb};
use tracing::{debug, warn};

use super::{
    Gang,
    wire::{Channel, Hello, Welcome, read_handshake, write_handshake},
};

/// Jobs whose last generation is remembered, so that a peer that is behind gets an answer.
const REMEMBERED: usize = 64;
/// Callers whose handshake is under way at once; more are turned away.
const HANDSHAKES: usize = 64;

/// The worker's socket for its peers. Dropping it closes the socket.
pub struct Listener {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    routes: Mutex<Vec<Route>>,
    handshakes: AtomicUsize,
    closed: AtomicBool,
    handshake_deadline: Duration,
}

/// A generation that this member has begun.
struct Route {
    job: String,
    fence: pb::Fence,
    index: u32,
    world_size: u32,
    state: State,
}

/// How far this member is in a generation.
enum State {
    /// It waits for its peers.
    Joining(mpsc::Sender<Arrival>),
    /// All lines stand, or stood.
    Stands,
    /// It did not come to be.
    GivenUp,
}

/// A line that stands.
pub(super) struct Arrival {
    pub peer: u32,
    pub channel: Channel,
    /// The peer called; otherwise it was called.
    pub called: bool,
    pub stream: TcpStream,
}

impl Listener {
    /// Binds the socket and starts to answer. `handshake_deadline`: a caller's time to say who it is.
    pub fn bind(address: impl ToSocketAddrs, handshake_deadline: Duration) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        let address = socket.local_addr()?;
        let inner = Arc::new(Inner {
            routes: Mutex::default(),
            handshakes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            handshake_deadline,
        });
        let accepting = inner.clone();
        thread::Builder::new().name("gang-accept".into()).spawn(move || accept(&socket, &accepting))?;
        Ok(Self { address, inner })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Sends callers of `gang` to `callers` until the registration is dropped. Earlier generations of the job are over
    /// with it.
    pub(super) fn register(&self, gang: &Gang, callers: mpsc::Sender<Arrival>) -> Registration {
        let (job, fence) = (gang.job.clone(), gang.fence.clone());
        let mut routes = self.inner.routes();
        routes.retain(|route| route.job != job);
        if routes.len() >= REMEMBERED {
            routes.remove(0);
        }
        routes.push(Route {
            job: job.clone(),
            fence: fence.clone(),
            index: gang.index,
            world_size: gang.world_size(),
            state: State::Joining(callers),
        });
        drop(routes);
        Registration { inner: self.inner.clone(), job, fence, stands: false }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.inner.closed.store(true, SeqCst);
        // Wakes the accepting thread; a failure means that the socket is closed already.
        let mut wake = self.address;
        if wake.ip().is_unspecified() {
            wake.set_ip(if wake.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        drop(TcpStream::connect_timeout(&wake, Duration::from_secs(1)));
    }
}

/// Keeps a route open.
pub(super) struct Registration {
    inner: Arc<Inner>,
    job: String,
    fence: pb::Fence,
    stands: bool,
}

impl Registration {
    /// All lines stand: nobody is expected any more.
    pub fn stands(mut self) {
        self.stands = true;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut routes = self.inner.routes();
        let ours = |route: &&mut Route| route.job == self.job && route.fence == self.fence;
        if let Some(route) = routes.iter_mut().find(ours) {
            route.state = if self.stands { State::Stands } else { State::GivenUp };
        }
    }
}

impl Inner {
    fn routes(&self) -> MutexGuard<'_, Vec<Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads who calls, answers, and hands an accepted caller to its run.
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(self.handshake_deadline))?;
        stream.set_write_timeout(Some(self.handshake_deadline))?;
        stream.set_nodelay(true)?;
        let hello: Hello = read_handshake(&mut stream)?;
        let (welcome, callers) = self.judge(&hello);
        write_handshake(&mut stream, &welcome)?;
        match (welcome, callers) {
            (Welcome::Accepted, Some(callers)) => {
                // The run may have given up in between; then the caller sees its connection close.
                let (peer, channel) = (hello.from, hello.channel);
                drop(callers.send(Arrival { peer, channel, called: true, stream }));
            }
            (Welcome::Refused(reason), _) => {
                warn!(from = hello.from, job = hello.job, reason, "refused a peer's handshake");
            }
            (welcome, _) => {
                debug!(from = hello.from, job = hello.job, ?welcome, "put off a peer's handshake")
            }
        }
        Ok(())
    }

    /// Whether the caller may come in, and to whom.
    fn judge(&self, hello: &Hello) -> (Welcome, Option<mpsc::Sender<Arrival>>) {
        if hello.protocol != GANG_PROTOCOL_VERSION {
            return (Welcome::Refused(differ("gang protocol", GANG_PROTOCOL_VERSION, hello.protocol)), None);
        }
        let routes = self.routes();
        let Some(route) = routes.iter().find(|route| route.job == hello.job) else {
            return (Welcome::Later(format!("{} has not begun here", hello.job)), None);
        };
        let fence = hello.fence();
        if route.fence != fence && !lorafleet_failpoint::defect("fence-off") {
            let reason = differ("fence", describe(&route.fence), describe(&fence));
            let generation = route.fence.generation;
            let welcome = match number(&fence).cmp(&number(&route.fence)) {
                // It comes back when this member has caught up; one that is behind never may.
                Ordering::Greater => Welcome::Later(reason),
                Ordering::Less => {
                    Welcome::Refused(format!("has moved on to generation {generation}: {reason}"))
                }
                Ordering::Equal => Welcome::Refused(reason),
            };
            return (welcome, None);
        }
        if let Err(reason) = check_places(route, hello) {
            return (Welcome::Refused(reason), None);
        }
        let generation = route.fence.generation;
        match (&route.state, hello.channel) {
            (State::Joining(callers), Channel::Control | Channel::Data) => {
                (Welcome::Accepted, Some(callers.clone()))
            }
            (State::Joining(_) | State::Stands, Channel::Probe) => (Welcome::Accepted, None),
            (State::Stands, _) => {
                (Welcome::Refused(format!("has joined generation {generation} already")), None)
            }
            (State::GivenUp, _) => (Welcome::Refused(format!("has given up generation {generation}")), None),
        }
    }
}

fn check_places(route: &Route, hello: &Hello) -> Result<(), String> {
    if hello.world_size != route.world_size {
        return Err(differ("world_size", route.world_size, hello.world_size));
    }
    if hello.to != route.index {
        return Err(differ("index", route.index, hello.to));
    }
    if hello.from >= route.world_size || hello.from == route.index {
        return Err(format!(
            "index: this member is {} of {}, the caller says it is {}",
            route.index, route.world_size, hello.from
        ));
    }
    Ok(())
}

fn number(fence: &pb::Fence) -> (u32, u32) {
    (fence.attempt, fence.generation)
}

fn describe(fence: &pb::Fence) -> String {
    let pb::Fence { attempt, generation, generation_id } = fence;
    format!("attempt {attempt}, generation {generation}, id {generation_id}")
}

fn differ(what: &str, ours: impl std::fmt::Display, theirs: impl std::fmt::Display) -> String {
    format!("{what}: this member has {ours}; the caller has {theirs}")
}

/// Answers callers until the listener is dropped.
fn accept(socket: &TcpListener, inner: &Arc<Inner>) {
    for stream in socket.incoming() {
        if inner.closed.load(SeqCst) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or a caller that hung up: neither may spin this thread or end it.
                warn!(%error, "could not accept a peer");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if inner.handshakes.fetch_add(1, SeqCst) >= HANDSHAKES {
            inner.handshakes.fetch_sub(1, SeqCst);
            warn!("turned a peer away: {HANDSHAKES} handshakes are under way");
            continue;
        }
        let answering = inner.clone();
        let spawned = thread::Builder::new().name("gang-handshake".into()).spawn(move || {
            if let Err(error) = answering.answer(stream) {
                debug!(%error, "a caller did not finish its handshake");
            }
            answering.handshakes.fetch_sub(1, SeqCst);
        });
        if let Err(error) = spawned {
            inner.handshakes.fetch_sub(1, SeqCst);
            warn!(%error, "no thread for a peer's handshake");
        }
    }
}
