//! The control line to one peer, on a thread of its own: pings tell a peer that computes from one that is gone.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Abort, Gang, TcpOptions,
    join::Lines,
    wire::{Frame, Frames},
};
use crate::collective::CollectiveError;

/// How long a member that has left still listens, so that its good-bye is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// A control line that takes no byte for this long is as good as cut.
const CONTROL_WRITE: Duration = Duration::from_secs(5);

/// The sockets of a gang, for those who close them.
pub(super) struct Wires {
    control: Vec<Option<Mutex<TcpStream>>>,
    data: [TcpStream; 2],
    /// By index: it said good-bye.
    left: Vec<AtomicBool>,
    /// This member said good-bye.
    leaving: AtomicBool,
    /// This member closed its sockets.
    closed: AtomicBool,
}

impl Wires {
    pub fn new(lines: &Lines) -> io::Result<Self> {
        let clone = |line: &Option<TcpStream>| -> io::Result<Option<Mutex<TcpStream>>> {
            let Some(line) = line else { return Ok(None) };
            line.set_write_timeout(Some(CONTROL_WRITE))?;
            Ok(Some(Mutex::new(line.try_clone()?)))
        };
        Ok(Self {
            control: lines.control.iter().map(clone).collect::<io::Result<_>>()?,
            data: [lines.data_in.try_clone()?, lines.data_out.try_clone()?],
            left: lines.control.iter().map(|_| AtomicBool::new(false)).collect(),
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Whether the peer said good-bye.
    pub fn has_left(&self, peer: u32) -> bool {
        self.left[peer as usize].load(Ordering::SeqCst)
    }

    /// Tells every peer why the gang ends, and closes every line; blocked operations wake up.
    pub fn end(&self, failure: &CollectiveError) {
        let suspect = failure.suspects().first().copied();
        // Passed on also by who was told: its closing line must not make it look like the culprit.
        let reason = match failure {
            CollectiveError::AbortedByPeer { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        self.tell_all(&Frame::Abort { suspect, reason });
        self.close();
    }

    /// Says good-bye; what was sent is still delivered.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.tell_all(&Frame::Bye);
        for line in self.control.iter().flatten() {
            shutdown(&line.lock().unwrap_or_else(PoisonError::into_inner), Shutdown::Write);
        }
        for line in &self.data {
            shutdown(line, Shutdown::Write);
        }
    }

    /// Closes every line without a word, as a killed process does.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for line in &self.data {
            shutdown(line, Shutdown::Both);
        }
        for line in self.control.iter().flatten() {
            shutdown(&line.lock().unwrap_or_else(PoisonError::into_inner), Shutdown::Both);
        }
    }

    fn tell_all(&self, frame: &Frame) {
        for peer in 0..self.control.len() {
            // A peer that can't be told notices that the line closes.
            drop(self.tell(peer as u32, frame));
        }
    }

    fn tell(&self, peer: u32, frame: &Frame) -> io::Result<()> {
        let Some(line) = &self.control[peer as usize] else { return Ok(()) };
        line.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame.encode())
    }
}

/// Fails only when the line is closed already, which is what is wanted.
fn shutdown(line: &TcpStream, how: Shutdown) {
    drop(line.shutdown(how));
}

/// What the thread of one control line needs.
pub(super) struct Pulse {
    pub peer: u32,
    pub gang: Arc<Gang>,
    pub wires: Arc<Wires>,
    pub abort: Abort,
    pub ping_every: Duration,
    pub silence: Duration,
}

impl Pulse {
    /// Starts a thread for each control line.
    pub fn start_all(
        lines: Vec<Option<TcpStream>>,
        gang: &Arc<Gang>,
        wires: &Arc<Wires>,
        abort: &Abort,
        options: &TcpOptions,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for (peer, line) in lines.into_iter().enumerate() {
            let Some(line) = line else { continue };
            let pulse = Self {
                peer: peer as u32,
                gang: gang.clone(),
                wires: wires.clone(),
                abort: abort.clone(),
                ping_every: options.ping_every,
                silence: options.silence,
            };
            let thread = thread::Builder::new().name("gang-pulse".into()).spawn(move || pulse.run(line))?;
            threads.push(thread);
        }
        Ok(threads)
    }

    /// Pings and listens until either side leaves, or one of them fails.
    fn run(self, mut line: TcpStream) {
        if let Err(failure) = self.listen(&mut line) {
            self.abort.fail(failure);
        }
    }

    fn listen(&self, line: &mut TcpStream) -> Result<(), CollectiveError> {
        let glance = (self.ping_every / 2).clamp(Duration::from_millis(5), Duration::from_millis(200));
        line.set_read_timeout(Some(glance)).map_err(|error| self.gone(&error))?;
        let (mut frames, mut buffer) = (Frames::default(), [0u8; 256]);
        let (mut heard, mut pinged, mut left_at) = (Instant::now(), None::<Instant>, None::<Instant>);
        loop {
            if self.wires.closed.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.wires.leaving.load(Ordering::SeqCst) {
                if left_at.get_or_insert_with(Instant::now).elapsed() > LINGER {
                    return Ok(());
                }
            } else if pinged.is_none_or(|at| at.elapsed() >= self.ping_every) {
                // A broken line shows itself in the read below, after what the peer said last.
                drop(self.wires.tell(self.peer, &Frame::Ping));
                pinged = Some(Instant::now());
            }
            match line.read(&mut buffer) {
                Ok(0) => return self.hung_up("it closed its control line"),
                Ok(read) => {
                    heard = Instant::now();
                    frames.push(&buffer[..read]);
                    while let Some(frame) = frames.next().map_err(|error| self.gone(&error))? {
                        self.take(frame)?;
                    }
                }
                Err(error) if is_timeout(&error) => self.check_silence(heard)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.hung_up(&error.to_string()),
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), CollectiveError> {
        match frame {
            Frame::Ping => Ok(()),
            Frame::Bye => {
                self.wires.left[self.peer as usize].store(true, Ordering::SeqCst);
                Ok(())
            }
            Frame::Abort { suspect, reason } => Err(CollectiveError::AbortedByPeer {
                by: self.gang.peer(self.peer),
                suspect: suspect
                    .filter(|&index| index < self.gang.world_size())
                    .map(|index| Box::new(self.gang.peer(index))),
                reason,
            }),
        }
    }

    fn check_silence(&self, heard: Instant) -> Result<(), CollectiveError> {
        let after = heard.elapsed();
        let excused = self.wires.has_left(self.peer) || self.wires.leaving.load(Ordering::SeqCst);
        if excused || after <= self.silence {
            return Ok(());
        }
        Err(CollectiveError::PeerSilent { peer: self.gang.peer(self.peer), after })
    }

    /// The line closed: rightly so after a good-bye of either side, otherwise the peer is gone.
    fn hung_up(&self, detail: &str) -> Result<(), CollectiveError> {
        let polite = self.wires.has_left(self.peer)
            || self.wires.leaving.load(Ordering::SeqCst)
            || self.wires.closed.load(Ordering::SeqCst);
        if polite {
            return Ok(());
        }
        Err(CollectiveError::PeerGone { peer: self.gang.peer(self.peer), detail: detail.to_owned() })
    }

    fn gone(&self, error: &io::Error) -> CollectiveError {
        CollectiveError::PeerGone { peer: self.gang.peer(self.peer), detail: error.to_string() }
    }
}

/// Whether a read or write ran into its socket's deadline.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
