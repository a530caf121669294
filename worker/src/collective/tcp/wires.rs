//! The sockets of one gang, with what each peer's line showed last: for those who close them, and say who is at fault.

use std::{
    io::{self, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Gang, wire::Frame};
use crate::collective::CollectiveError;

/// A control line that takes no byte for this long is as good as cut.
const CONTROL_WRITE: Duration = Duration::from_secs(5);
/// How long a member that has lost a peer looks what became of the others before it says so: a killed process closes
/// its sockets to all at once, and so do several that were killed together.
const LOOK_AROUND: Duration = Duration::from_millis(20);

/// What a peer's control line showed last.
#[derive(Clone, Debug)]
enum Standing {
    /// There is no line yet.
    Absent,
    /// Pings come, or have not been missing for too long.
    Up,
    /// It said good-bye.
    Left,
    /// It said that the gang is over: so it lives.
    Ended,
    /// It is gone or silent, as this member saw itself.
    Lost(CollectiveError),
}

#[derive(Clone, Debug)]
struct Sight {
    standing: Standing,
    heard: Instant,
}

/// The lines of a gang, also of one whose members are still dialling.
pub(super) struct Wires {
    gang: Arc<Gang>,
    silence: Duration,
    control: Vec<Mutex<Option<TcpStream>>>,
    data: Mutex<Vec<TcpStream>>,
    sights: Mutex<Vec<Sight>>,
    changed: Condvar,
    /// This member said good-bye.
    leaving: AtomicBool,
    /// This member closed its sockets.
    closed: AtomicBool,
}

impl Wires {
    /// No line stands yet.
    pub fn new(gang: &Arc<Gang>, silence: Duration) -> Self {
        let nothing = Sight { standing: Standing::Absent, heard: Instant::now() };
        Self {
            gang: gang.clone(),
            silence,
            control: gang.members.iter().map(|_| Mutex::default()).collect(),
            data: Mutex::default(),
            sights: Mutex::new(vec![nothing; gang.members.len()]),
            changed: Condvar::new(),
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// The control line to a peer stands.
    pub fn add_control(&self, peer: u32, line: &TcpStream) -> io::Result<()> {
        line.set_write_timeout(Some(CONTROL_WRITE))?;
        *lock(&self.control[peer as usize]) = Some(line.try_clone()?);
        self.see(peer, Standing::Up);
        if self.is_closed() {
            shutdown(line, Shutdown::Both);
        }
        Ok(())
    }

    /// A data line stands.
    pub fn add_data(&self, line: &TcpStream) -> io::Result<()> {
        lock(&self.data).push(line.try_clone()?);
        if self.is_closed() {
            shutdown(line, Shutdown::Both);
        }
        Ok(())
    }

    /// Waits for the control line to a peer, at most this long; true when it stands, or the gang is over.
    pub fn wait_control(&self, peer: u32, patience: Duration) -> bool {
        let absent = |sights: &mut Vec<Sight>| {
            matches!(sights[peer as usize].standing, Standing::Absent) && !self.is_closed()
        };
        let waited = self.changed.wait_timeout_while(self.sights(), patience, absent);
        !absent(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Whether the control line to a peer stands, or stood.
    pub fn has_control(&self, peer: u32) -> bool {
        !matches!(self.sights()[peer as usize].standing, Standing::Absent)
    }

    /// Something came from the peer.
    pub fn heard(&self, peer: u32) {
        self.sights()[peer as usize].heard = Instant::now();
    }

    /// The peer said good-bye.
    pub fn left(&self, peer: u32) {
        self.see(peer, Standing::Left);
    }

    /// What this member found out about a peer: by itself, or from the peer.
    pub fn failed(&self, peer: u32, failure: &CollectiveError) {
        let direct = !failure.suspicions().is_empty();
        self.see(peer, if direct { Standing::Lost(failure.clone()) } else { Standing::Ended });
    }

    /// Whether the peer said good-bye.
    pub fn has_left(&self, peer: u32) -> bool {
        matches!(self.sights()[peer as usize].standing, Standing::Left)
    }

    /// Whether this member said good-bye.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Whether this member closed its sockets.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Tells every peer why the gang ends, and closes every line; blocked operations wake up. Returns the failure with
    /// all that this member saw itself by then.
    pub fn end(&self, failure: CollectiveError) -> CollectiveError {
        let suspect = failure.suspects().first().copied();
        // Passed on also by who was told: its closing line must not make it look like the culprit.
        let reason = match &failure {
            CollectiveError::AbortedByPeer { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        self.tell_all(&Frame::Abort { suspect, reason });
        let failure = self.look_around(failure);
        self.close();
        failure
    }

    /// Says good-bye; what was sent is still delivered.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.tell_all(&Frame::Bye);
        self.shut(Shutdown::Write);
    }

    /// Closes every line without a word, as a killed process does.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.shut(Shutdown::Both);
        // Under the lock, so that nobody misses it between its look and its wait.
        let _sights = self.sights();
        self.changed.notify_all();
    }

    /// Sends one frame to a peer.
    pub fn tell(&self, peer: u32, frame: &Frame) -> io::Result<()> {
        match &mut *lock(&self.control[peer as usize]) {
            Some(line) => line.write_all(&frame.encode()),
            None => Ok(()),
        }
    }

    fn tell_all(&self, frame: &Frame) {
        for peer in 0..self.gang.world_size() {
            // A peer that can't be told notices that the line closes.
            drop(self.tell(peer, frame));
        }
    }

    fn shut(&self, how: Shutdown) {
        for line in &*lock(&self.data) {
            shutdown(line, how);
        }
        for line in &self.control {
            if let Some(line) = &*lock(line) {
                shutdown(line, how);
            }
        }
    }

    /// After a peer was lost: waits a moment for the others to speak up or to be seen lost, too. What this member saw
    /// itself counts before what it was told.
    fn look_around(&self, failure: CollectiveError) -> CollectiveError {
        let told = matches!(failure, CollectiveError::AbortedByPeer { suspect: Some(_), .. });
        if failure.suspicions().is_empty() && !told {
            return failure;
        }
        let open =
            |sights: &mut Vec<Sight>| sights.iter().any(|sight| matches!(sight.standing, Standing::Up));
        let waited = self.changed.wait_timeout_while(self.sights(), LOOK_AROUND, open);
        let sights = waited.unwrap_or_else(PoisonError::into_inner).0.clone();
        let silent = matches!(failure, CollectiveError::PeerSilent { .. });
        let mut errors: Vec<CollectiveError> = Vec::new();
        for (peer, sight) in (0..).zip(sights) {
            match sight.standing {
                Standing::Lost(error) => errors.push(error),
                // Frozen at the same moment: its pings are only a little younger.
                Standing::Up if silent && sight.heard.elapsed() > self.silence.mul_f64(0.8) => {
                    let after = sight.heard.elapsed();
                    errors.push(CollectiveError::PeerSilent { peer: self.gang.peer(peer), after });
                }
                _ => {}
            }
        }
        let seen: Vec<u32> = errors.iter().flat_map(CollectiveError::suspects).collect();
        if failure.suspects().iter().any(|suspect| !seen.contains(suspect)) {
            errors.insert(0, failure);
        }
        match errors.len() {
            1 => errors.remove(0),
            _ => CollectiveError::Several { errors },
        }
    }

    fn see(&self, peer: u32, standing: Standing) {
        let mut sights = self.sights();
        let sight = &mut sights[peer as usize];
        sight.standing = standing;
        sight.heard = Instant::now();
        self.changed.notify_all();
    }

    fn sights(&self) -> MutexGuard<'_, Vec<Sight>> {
        lock(&self.sights)
    }
}

/// A panic elsewhere leaves nothing half-written here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails only when the line is closed already, which is what is wanted.
fn shutdown(line: &TcpStream, how: Shutdown) {
    drop(line.shutdown(how));
}
