//! Rendezvous on the network: every member dials and is dialled until all lines of the gang stand.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use lorafleet_proto::GANG_PROTOCOL_VERSION;

use super::{
    Abort, Gang, Listener, TcpOptions,
    listener::Caller,
    wire::{Channel, Hello, Welcome, read_handshake, write_handshake},
};
use crate::collective::{CollectiveError, Peer};

/// How often a wait looks at the abort handle.
const GLANCE: Duration = Duration::from_millis(50);
/// The pause before dialling again grows up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The standing lines of one member.
pub(super) struct Lines {
    /// By index; none to oneself.
    pub control: Vec<Option<TcpStream>>,
    /// To the next member.
    pub data_out: TcpStream,
    /// From the previous member.
    pub data_in: TcpStream,
}

/// Dials who is to be dialled (control: lower indices; data: the next member) and waits for the others' calls.
pub(super) fn connect(
    listener: &Listener,
    gang: &Gang,
    options: &TcpOptions,
    abort: &Abort,
) -> Result<Lines, CollectiveError> {
    let deadline = Instant::now() + options.join;
    let (_registration, callers) = listener.register(gang);
    let dialler = Dialler { gang, options, abort, deadline };
    thread::scope(|scope| {
        let dial = |to: u32, channel| {
            let dialler = &dialler;
            thread::Builder::new()
                .name("gang-dial".into())
                .spawn_scoped(scope, move || {
                    let line = dialler.dial(to, channel);
                    if let Err(error) = &line {
                        // The others stop waiting, too.
                        dialler.abort.fail(error.clone());
                    }
                    line
                })
                .map_err(|error| abort.fail(CollectiveError::Local(format!("no thread to dial: {error}"))))
        };
        let controls: Vec<_> =
            (0..gang.index).map(|to| dial(to, Channel::Control)).collect::<Result<_, _>>()?;
        let data_out = dial(gang.next(), Channel::Data)?;
        let (mut control, data_in) = receive(gang, options, abort, &callers, deadline)?;
        let panicked = |_| CollectiveError::Local("a dialling thread panicked".into());
        for (to, thread) in controls.into_iter().enumerate() {
            control[to] = Some(thread.join().map_err(panicked)??);
        }
        Ok(Lines { control, data_out: data_out.join().map_err(panicked)??, data_in })
    })
}

/// Collects the calls of higher indices (control) and of the previous member (data).
fn receive(
    gang: &Gang,
    options: &TcpOptions,
    abort: &Abort,
    callers: &Receiver<Caller>,
    deadline: Instant,
) -> Result<(Vec<Option<TcpStream>>, TcpStream), CollectiveError> {
    let mut control: Vec<Option<TcpStream>> = gang.members.iter().map(|_| None).collect();
    let mut data = None;
    loop {
        let missing: Vec<u32> = (gang.index + 1..gang.world_size())
            .filter(|&from| control[from as usize].is_none())
            .chain(data.is_none().then(|| gang.previous()))
            .collect();
        if missing.is_empty()
            && let Some(data) = data.take()
        {
            return Ok((control, data));
        }
        if let Some(failure) = abort.failure() {
            return Err(failure);
        }
        if Instant::now() >= deadline {
            let mut peers: Vec<Peer> = missing.iter().map(|&index| gang.peer(index)).collect();
            peers.dedup();
            return Err(abort.fail(CollectiveError::Missing { peers, after: options.join }));
        }
        match callers.recv_timeout(GLANCE) {
            Ok(Caller { from, channel: Channel::Control, stream }) => control[from as usize] = Some(stream),
            Ok(Caller { from, channel: Channel::Data, stream }) if from == gang.previous() => {
                data = Some(stream)
            }
            Ok(Caller { .. }) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(abort.fail(CollectiveError::Local("the gang's listener is closed".into())));
            }
        }
    }
}

struct Dialler<'a> {
    gang: &'a Gang,
    options: &'a TcpOptions,
    abort: &'a Abort,
    deadline: Instant,
}

impl Dialler<'_> {
    /// Dials until the peer lets us in, refuses for good, or time is up.
    fn dial(&self, to: u32, channel: Channel) -> Result<TcpStream, CollectiveError> {
        let mut pause = Duration::from_millis(10);
        loop {
            let detail = match self.try_once(to, channel) {
                Ok((stream, Welcome::Accepted)) => return Ok(stream),
                Ok((_, Welcome::Refused(detail))) => {
                    return Err(CollectiveError::Refused { peer: self.gang.peer(to), detail });
                }
                Ok((_, Welcome::Later(detail))) => detail,
                Err(error) => error.to_string(),
            };
            if Instant::now() + pause >= self.deadline {
                return Err(CollectiveError::Unreachable { peer: self.gang.peer(to), detail });
            }
            if let Some(failure) = self.abort.wait(pause) {
                return Err(failure);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_once(&self, to: u32, channel: Channel) -> io::Result<(TcpStream, Welcome)> {
        let address = &self.gang.peer(to).address;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.options.connect) {
                Ok(stream) => return self.shake(stream, to, channel),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn shake(&self, mut stream: TcpStream, to: u32, channel: Channel) -> io::Result<(TcpStream, Welcome)> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.options.handshake))?;
        stream.set_write_timeout(Some(self.options.handshake))?;
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
