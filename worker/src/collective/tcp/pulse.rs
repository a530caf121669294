//! The control line to one peer, on a thread of its own: pings tell a peer that computes from one that is gone.

use std::{
    io::{self, Read},
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Abort, Gang, TcpOptions,
    wire::{Frame, Frames},
    wires::Wires,
};
use crate::collective::CollectiveError;

/// How long a member that has left still listens, so that its good-bye is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// What the thread of one control line needs.
pub(super) struct Pulse {
    peer: u32,
    gang: Arc<Gang>,
    wires: Arc<Wires>,
    abort: Abort,
    ping_every: Duration,
    silence: Duration,
}

impl Pulse {
    /// Starts the thread of a control line that stands now.
    pub fn start(
        peer: u32,
        line: TcpStream,
        gang: &Arc<Gang>,
        wires: &Arc<Wires>,
        abort: &Abort,
        options: &TcpOptions,
    ) -> io::Result<()> {
        wires.add_control(peer, &line)?;
        let pulse = Self {
            peer,
            gang: gang.clone(),
            wires: wires.clone(),
            abort: abort.clone(),
            ping_every: options.ping_every,
            silence: options.silence,
        };
        thread::Builder::new().name("gang-pulse".into()).spawn(move || pulse.run(line)).map(drop)
    }

    /// Pings and listens until either side leaves, or one of them fails.
    fn run(self, mut line: TcpStream) {
        if let Err(failure) = self.listen(&mut line) {
            self.wires.failed(self.peer, &failure);
            self.abort.fail(failure);
        }
    }

    fn listen(&self, line: &mut TcpStream) -> Result<(), CollectiveError> {
        let glance = (self.ping_every / 2).clamp(Duration::from_millis(5), Duration::from_millis(200));
        line.set_read_timeout(Some(glance)).map_err(|error| self.gone(&error))?;
        let (mut frames, mut buffer) = (Frames::default(), [0u8; 256]);
        let (mut heard, mut pinged, mut left_at) = (Instant::now(), None::<Instant>, None::<Instant>);
        loop {
            if self.wires.is_closed() {
                return Ok(());
            }
            if self.wires.is_leaving() {
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
                    self.wires.heard(self.peer);
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
                self.wires.left(self.peer);
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
        let excused = self.wires.has_left(self.peer) || self.wires.is_leaving();
        if excused || after <= self.silence {
            return Ok(());
        }
        Err(CollectiveError::PeerSilent { peer: self.gang.peer(self.peer), after })
    }

    /// The line closed: rightly so after a good-bye of either side, otherwise the peer is gone.
    fn hung_up(&self, detail: &str) -> Result<(), CollectiveError> {
        let polite = self.wires.has_left(self.peer) || self.wires.is_leaving() || self.wires.is_closed();
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
