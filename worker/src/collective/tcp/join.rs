//! Rendezvous on the network: every member dials and is dialled until all lines of the gang stand.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use lorafleet_proto::GANG_PROTOCOL_VERSION;

use super::{
    Abort, Gang, Listener, TcpOptions,
    listener::Arrival,
    pulse::Pulse,
    wire::{Channel, Hello, Welcome, read_handshake, write_handshake},
    wires::Wires,
};
use crate::collective::CollectiveError;

/// How often a wait looks at the abort handle.
const GLANCE: Duration = Duration::from_millis(20);
/// The pause before dialling again, at first.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// It grows up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// A peer that is to call has this long before it is asked whether it lives.
const UNASKED: Duration = Duration::from_millis(100);

/// The standing lines of one member; its control lines have their threads already.
pub(super) struct Lines {
    pub wires: Arc<Wires>,
    /// To the next member.
    pub data_out: TcpStream,
    /// From the previous member.
    pub data_in: TcpStream,
}

/// Dials who is to be dialled (control: lower indices; data: the next member), waits for the others' calls, and asks
/// those that do not call whether they live.
pub(super) fn connect(
    listener: &Listener,
    gang: &Arc<Gang>,
    options: &TcpOptions,
    abort: &Abort,
) -> Result<Lines, CollectiveError> {
    let wires = Arc::new(Wires::new(gang, options.silence));
    // Weak: a handle that outlives the collective must not keep its sockets open.
    let ending = Arc::downgrade(&wires);
    abort.on_ending(move |failure| match ending.upgrade() {
        Some(wires) => wires.end(failure),
        None => failure,
    });
    let (arrivals, arriving) = mpsc::channel();
    let registration = listener.register(gang, arrivals.clone());
    let joining = Joining {
        gang: gang.clone(),
        options: options.clone(),
        abort: abort.clone(),
        wires,
        deadline: Instant::now() + options.read,
        arrivals,
    };
    for peer in (0..gang.world_size()).filter(|&peer| peer != gang.index) {
        match peer < gang.index {
            true => joining.spawn("gang-dial", move |joining| joining.dial(peer, Channel::Control))?,
            false => joining.spawn("gang-watch", move |joining| joining.watch(peer))?,
        }
    }
    joining.spawn("gang-dial", |joining| joining.dial(joining.gang.next(), Channel::Data))?;
    let lines = joining.receive(&arriving)?;
    registration.stands();
    Ok(lines)
}

/// One member's try to join; its threads end by themselves when it is over.
#[derive(Clone)]
struct Joining {
    gang: Arc<Gang>,
    options: TcpOptions,
    abort: Abort,
    wires: Arc<Wires>,
    /// For peers that answer, but do not begin.
    deadline: Instant,
    arrivals: Sender<Arrival>,
}

impl Joining {
    /// Starts a thread whose failure ends the waiting of all others.
    fn spawn(
        &self,
        name: &str,
        work: impl FnOnce(&Self) -> Result<(), CollectiveError> + Send + 'static,
    ) -> Result<(), CollectiveError> {
        let joining = self.clone();
        let run = move || {
            if let Err(error) = work(&joining) {
                joining.abort.fail(error);
            }
        };
        let spawned = thread::Builder::new().name(name.into()).spawn(run);
        spawned.map(drop).map_err(|error| self.local(&error))
    }

    /// Takes the lines as they come to stand, until all have.
    fn receive(&self, arriving: &Receiver<Arrival>) -> Result<Lines, CollectiveError> {
        let (mut data_in, mut data_out) = (None, None);
        loop {
            let missing = |&peer: &u32| peer != self.gang.index && !self.wires.has_control(peer);
            let missing = (0..self.gang.world_size()).find(missing);
            (data_in, data_out) = match (missing, data_in, data_out) {
                (None, Some(data_in), Some(data_out)) => {
                    return Ok(Lines { wires: self.wires.clone(), data_out, data_in });
                }
                (_, data_in, data_out) => (data_in, data_out),
            };
            if let Some(failure) = self.abort.failure() {
                return Err(failure);
            }
            if Instant::now() >= self.deadline {
                let peer = missing.unwrap_or_else(|| self.gang.previous());
                return Err(self.abort.fail(self.stuck(peer)));
            }
            let Ok(Arrival { peer, channel, called, stream }) = arriving.recv_timeout(GLANCE) else {
                continue;
            };
            match channel {
                Channel::Control => self.add_control(peer, stream)?,
                Channel::Data => {
                    self.wires.add_data(&stream).map_err(|error| self.local(&error))?;
                    match called {
                        true if peer == self.gang.previous() => data_in = Some(stream),
                        true => {}
                        false => data_out = Some(stream),
                    }
                }
                Channel::Probe => {}
            }
        }
    }

    fn add_control(&self, peer: u32, stream: TcpStream) -> Result<(), CollectiveError> {
        Pulse::start(peer, stream, &self.gang, &self.wires, &self.abort, &self.options)
            .map_err(|error| self.local(&error))
    }

    fn local(&self, error: &io::Error) -> CollectiveError {
        self.abort.fail(CollectiveError::Local(error.to_string()))
    }

    fn stuck(&self, peer: u32) -> CollectiveError {
        CollectiveError::PeerStuck { peer: self.gang.peer(peer), after: self.options.read }
    }

    /// Makes a line to a peer; none when the gang is over before.
    fn dial(&self, peer: u32, channel: Channel) -> Result<(), CollectiveError> {
        if let Some(stream) = self.call(peer, channel, |pause| self.abort.wait(pause).is_some())? {
            // After the end nobody waits for it.
            drop(self.arrivals.send(Arrival { peer, channel, called: false, stream }));
        }
        Ok(())
    }

    /// Asks a peer that is to call whether it lives, until it has called.
    fn watch(&self, peer: u32) -> Result<(), CollectiveError> {
        let called = |pause| self.wires.wait_control(peer, pause);
        if called(UNASKED) {
            return Ok(());
        }
        let asked = self.call(peer, Channel::Probe, called).map(drop);
        // Its call may have come while its answer did not.
        if self.wires.has_control(peer) { Ok(()) } else { asked }
    }

    /// Calls until the peer lets us in, refuses for good, cannot be reached, or `enough` says so after a pause. A
    /// probe goes on until the last of these.
    fn call(
        &self,
        to: u32,
        channel: Channel,
        enough: impl Fn(Duration) -> bool,
    ) -> Result<Option<TcpStream>, CollectiveError> {
        let mut pause = SHORTEST_PAUSE;
        let mut hope = Hope::new(Instant::now());
        loop {
            let left = self.options.silence.saturating_sub(hope.heard.elapsed()).max(GLANCE);
            let answer = self.try_once(to, channel, left);
            let now = Instant::now();
            match answer {
                Ok((stream, Welcome::Accepted)) if channel != Channel::Probe => return Ok(Some(stream)),
                Ok((_, Welcome::Refused(detail))) => {
                    return Err(CollectiveError::Refused { peer: self.gang.peer(to), detail });
                }
                Ok((_, Welcome::Accepted | Welcome::Later(_))) => {
                    hope = Hope::new(now);
                    if now >= self.deadline {
                        return Err(self.stuck(to));
                    }
                }
                Err(error) => {
                    if hope.is_lost(&error, now, &self.options) {
                        let (peer, detail) = (self.gang.peer(to), error.to_string());
                        return Err(CollectiveError::Unreachable { peer, detail });
                    }
                }
            }
            if enough(pause) {
                return Ok(None);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_once(&self, to: u32, channel: Channel, patience: Duration) -> io::Result<(TcpStream, Welcome)> {
        let address = &self.gang.peer(to).address;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.options.connect.min(patience)) {
                Ok(stream) => return self.shake(stream, to, channel, self.options.handshake.min(patience)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn shake(
        &self,
        mut stream: TcpStream,
        to: u32,
        channel: Channel,
        patience: Duration,
    ) -> io::Result<(TcpStream, Welcome)> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let fence = &self.gang.fence;
        let hello = Hello {
            protocol: GANG_PROTOCOL_VERSION,
            job: self.gang.job.clone(),
            attempt: fence.attempt,
            generation: fence.generation,
            generation_id: fence.generation_id.clone(),
            world_size: self.gang.world_size(),
            from: self.gang.index,
            to,
            channel,
        };
        write_handshake(&mut stream, &hello)?;
        let welcome = read_handshake(&mut stream)?;
        Ok((stream, welcome))
    }
}

/// How long a peer has not answered.
struct Hope {
    /// It answered then, or the first try began.
    heard: Instant,
    /// Since then its machine says that nobody listens.
    refused: Option<Instant>,
}

impl Hope {
    fn new(heard: Instant) -> Self {
        Self { heard, refused: None }
    }

    /// Whether this failed try is the last.
    fn is_lost(&mut self, error: &io::Error, now: Instant, options: &TcpOptions) -> bool {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            let since = *self.refused.get_or_insert(now);
            return now.duration_since(since) >= options.refused;
        }
        self.refused = None;
        now.duration_since(self.heard) >= options.silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_port_is_given_up_sooner_than_silence() {
        let options = TcpOptions::default();
        let (start, refused) = (Instant::now(), io::Error::from(io::ErrorKind::ConnectionRefused));
        let timeout = io::Error::from(io::ErrorKind::TimedOut);
        let mut hope = Hope::new(start);
        let after = |millis| start + Duration::from_millis(millis);
        assert!(!hope.is_lost(&refused, after(100), &options));
        assert!(!hope.is_lost(&refused, after(590), &options));
        assert!(!hope.is_lost(&timeout, after(595), &options), "it is not the same any more");
        assert!(!hope.is_lost(&refused, after(700), &options));
        assert!(hope.is_lost(&refused, after(1200), &options));
        let mut hope = Hope::new(start);
        assert!(!hope.is_lost(&timeout, after(4900), &options));
        assert!(hope.is_lost(&timeout, after(5000), &options));
    }
}
