//! The collective between worker processes over TCP: a ring for tensors, a mesh of control lines for signs of life.

mod join;
mod listener;
mod pulse;
mod ring;
mod wire;
mod wires;

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lorafleet_proto::v1 as pb;

pub use self::listener::Listener;
use self::{
    pulse::is_timeout,
    ring::{Element, MAX_CHUNKS, Plan},
    wire::{OpHeader, OpKind},
    wires::Wires,
};
use super::{Abort, Collective, CollectiveError, Peer, solo::Solo};

/// A broadcast travels in pieces of this size.
const BROADCAST_CHUNK: usize = 256 * 1024;
/// How long the control lines may take to say who is at fault when a data line breaks.
const EXPLANATION: Duration = Duration::from_millis(500);

/// Deadlines of the network, all of them.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// One try at connecting.
    pub connect: Duration,
    /// One message of a handshake.
    pub handshake: Duration,
    /// A peer whose machine answers that nobody listens there is given up after this long.
    pub refused: Duration,
    /// A read within an operation, from a peer that pings; a peer that answers, but has not begun yet, is waited for
    /// as long: longer than any step.
    pub read: Duration,
    /// A write within an operation, to a peer that pings: longer than any step.
    pub write: Duration,
    /// Between two pings.
    pub ping_every: Duration,
    /// A peer that sent no ping for this long is silent; one that does not answer at all is unreachable.
    pub silence: Duration,
    /// Bytes of a broadcast at most.
    pub broadcast_limit: u64,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            refused: Duration::from_millis(500),
            read: Duration::from_secs(1800),
            write: Duration::from_secs(1800),
            ping_every: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            broadcast_limit: 16 << 30,
        }
    }
}

/// Who is in the gang, and which place is ours.
#[derive(Clone, Debug)]
pub struct Gang {
    /// `jobs/{id}`.
    pub job: String,
    /// Compared for equality in every handshake.
    pub fence: pb::Fence,
    /// This member's place.
    pub index: u32,
    /// All members, by index.
    pub members: Vec<Peer>,
}

impl Gang {
    fn world_size(&self) -> u32 {
        self.members.len() as u32
    }

    fn next(&self) -> u32 {
        (self.index + 1) % self.world_size()
    }

    fn previous(&self) -> u32 {
        (self.index + self.world_size() - 1) % self.world_size()
    }

    fn peer(&self, index: u32) -> Peer {
        self.members[index as usize].clone()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        let ordered = self.members.iter().enumerate().all(|(at, member)| member.index as usize == at);
        if self.members.is_empty() || !ordered || self.index >= self.world_size() {
            let places: Vec<u32> = self.members.iter().map(|member| member.index).collect();
            let message = format!("a gang with places {places:?} has none for index {}", self.index);
            return Err(CollectiveError::Invalid(message));
        }
        Ok(())
    }
}

/// Joins the gang; returns when every line stands. A gang of one needs none and gets [`Solo`].
///
/// A peer that has not begun this generation yet is waited for as long as it answers, up to the limit of a step. From
/// the first line on members ping each other, and one that gives up tells the others.
pub fn join(
    listener: &Listener,
    gang: Gang,
    options: &TcpOptions,
    abort: &Abort,
) -> Result<Box<dyn Collective>, CollectiveError> {
    gang.check()?;
    if let Some(failure) = abort.failure() {
        return Err(failure);
    }
    if gang.world_size() == 1 {
        return Ok(Box::new(Solo::new(abort.clone())));
    }
    let gang = Arc::new(gang);
    let lines = join::connect(listener, &gang, options, abort)?;
    let collective = Tcp::new(lines, gang, options, abort);
    let local = |error: io::Error| abort.fail(CollectiveError::Local(error.to_string()));
    Ok(Box::new(collective.map_err(local)?))
}

/// One member of a ring.
struct Tcp {
    gang: Arc<Gang>,
    wires: Arc<Wires>,
    abort: Abort,
    options: TcpOptions,
    data_in: TcpStream,
    /// Feeds the sending thread, so that sending and receiving overlap; none once this member leaves.
    out: Option<SyncSender<Vec<u8>>>,
    /// Buffers that the sending thread is done with.
    spare: Receiver<Vec<u8>>,
    sending: Option<JoinHandle<()>>,
    scratch: Vec<u8>,
    sequence: u64,
    payload: u64,
    framing: u64,
}

impl Tcp {
    fn new(lines: join::Lines, gang: Arc<Gang>, options: &TcpOptions, abort: &Abort) -> io::Result<Self> {
        let join::Lines { wires, data_out, data_in } = lines;
        data_in.set_read_timeout(Some(options.read))?;
        data_out.set_write_timeout(Some(options.write))?;
        let (out, queue) = mpsc::sync_channel(MAX_CHUNKS + 1);
        let (done, spare) = mpsc::channel();
        let sender =
            Sender { gang: gang.clone(), wires: wires.clone(), abort: abort.clone(), after: options.write };
        let sending = thread::Builder::new()
            .name("gang-send".into())
            .spawn(move || sender.run(data_out, &queue, &done))?;
        Ok(Self {
            gang,
            wires,
            abort: abort.clone(),
            options: options.clone(),
            data_in,
            out: Some(out),
            spare,
            sending: Some(sending),
            scratch: Vec::new(),
            sequence: 0,
            payload: 0,
            framing: 0,
        })
    }

    fn all_reduce<T: Element>(&mut self, kind: OpKind, buffer: &mut [T]) -> Result<(), CollectiveError> {
        let header = self.header(kind, buffer.len() as u64, 0);
        self.send_header(&header)?;
        self.expect_header(&header)?;
        let index = self.gang.index as usize;
        let plan = Plan::new(buffer.len(), self.gang.members.len(), T::BYTES);
        for chunk in plan.chunks(plan.first(index)) {
            self.send(&buffer[chunk])?;
        }
        for round in 0..plan.rounds() {
            if round == plan.rounds() / 2 {
                self.reach("mid-reduction")?;
            }
            for chunk in plan.chunks(plan.received(index, round)) {
                let element = chunk.start;
                let numbers = &mut buffer[chunk];
                self.receive(numbers.len() * T::BYTES)?;
                if !plan.adds(round) {
                    T::decode(numbers, &self.scratch);
                } else if !T::add(numbers, &self.scratch) {
                    return Err(self.abort.fail(CollectiveError::Overflow { element }));
                }
                if round + 1 < plan.rounds() {
                    self.send(numbers)?;
                }
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, root: u32, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        if root >= self.gang.world_size() {
            let message = format!("broadcast from member {root} of a gang of {}", self.gang.world_size());
            return Err(self.abort.fail(CollectiveError::Invalid(message)));
        }
        let mut header = self.header(OpKind::Broadcast, bytes.len() as u64, root);
        if self.gang.index == root {
            self.check_size(header.length)?;
            self.send_header(&header)?;
            let chunks = bytes.chunks(BROADCAST_CHUNK);
            let middle = chunks.len() / 2;
            for (at, chunk) in chunks.enumerate() {
                if at == middle {
                    self.reach("mid-broadcast")?;
                }
                self.send_bytes(|buffer| buffer.extend_from_slice(chunk))?;
            }
            return Ok(());
        }
        header.length = self.receive_header(&header)?.length;
        self.check_size(header.length)?;
        let forward = self.gang.next() != root;
        if forward {
            self.send_header(&header)?;
        }
        // The caller's bytes stay as they are until all have come.
        let mut received = Vec::new();
        let mut left = header.length as usize;
        while left > 0 {
            let size = left.min(BROADCAST_CHUNK);
            self.receive(size)?;
            received.extend_from_slice(&self.scratch);
            if forward {
                let chunk = std::mem::take(&mut self.scratch);
                self.send_bytes(|buffer| buffer.extend_from_slice(&chunk))?;
                self.scratch = chunk;
            }
            left -= size;
        }
        *bytes = received;
        Ok(())
    }

    fn check_size(&self, bytes: u64) -> Result<(), CollectiveError> {
        let limit = self.options.broadcast_limit;
        if bytes <= limit {
            return Ok(());
        }
        Err(self.abort.fail(CollectiveError::TooLarge { bytes, limit }))
    }

    fn header(&mut self, kind: OpKind, length: u64, root: u32) -> OpHeader {
        self.sequence += 1;
        OpHeader { kind, sequence: self.sequence, length, root }
    }

    fn send_header(&mut self, header: &OpHeader) -> Result<(), CollectiveError> {
        self.framing += OpHeader::BYTES as u64;
        self.queue(header.encode())
    }

    /// Reads the previous member's header; it must be in the same operation.
    fn receive_header(&mut self, ours: &OpHeader) -> Result<OpHeader, CollectiveError> {
        self.receive(OpHeader::BYTES)?;
        let theirs = self.scratch.as_slice().try_into().ok().and_then(OpHeader::decode);
        let same = |theirs: &OpHeader| {
            (theirs.kind, theirs.sequence, theirs.root) == (ours.kind, ours.sequence, ours.root)
        };
        match theirs {
            Some(theirs) if same(&theirs) => Ok(theirs),
            other => Err(self.out_of_step(ours, other.as_ref())),
        }
    }

    fn expect_header(&mut self, ours: &OpHeader) -> Result<(), CollectiveError> {
        let theirs = self.receive_header(ours)?;
        if theirs.length == ours.length { Ok(()) } else { Err(self.out_of_step(ours, Some(&theirs))) }
    }

    fn out_of_step(&self, ours: &OpHeader, theirs: Option<&OpHeader>) -> CollectiveError {
        self.abort.fail(CollectiveError::OutOfStep {
            peer: self.gang.peer(self.gang.previous()),
            ours: ours.describe(),
            theirs: theirs.map_or_else(|| "the middle of another one".to_owned(), OpHeader::describe),
        })
    }

    fn send<T: Element>(&mut self, numbers: &[T]) -> Result<(), CollectiveError> {
        self.send_bytes(|buffer| T::encode(numbers, buffer))
    }

    fn send_bytes(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), CollectiveError> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        fill(&mut buffer);
        self.payload += buffer.len() as u64;
        self.queue(buffer)
    }

    fn queue(&self, buffer: Vec<u8>) -> Result<(), CollectiveError> {
        let sent = self.out.as_ref().is_some_and(|out| out.send(buffer).is_ok());
        if sent {
            return Ok(());
        }
        // The sending thread ended, so it has said why.
        let gone = || CollectiveError::Local("the sending thread has ended".into());
        Err(self.abort.failure().unwrap_or_else(|| self.abort.fail(gone())))
    }

    /// Reads this many bytes into `scratch`.
    fn receive(&mut self, bytes: usize) -> Result<(), CollectiveError> {
        self.scratch.resize(bytes, 0);
        let read = self.data_in.read_exact(&mut self.scratch);
        let from = self.gang.previous();
        read.map_err(|error| explain(&self.gang, &self.wires, &self.abort, from, &error, self.options.read))
    }

    /// A failpoint; its "step" is the number of the operation within the generation.
    fn reach(&self, name: &str) -> Result<(), CollectiveError> {
        lorafleet_failpoint::reach(name, self.sequence)
            .map_err(|injected| self.abort.fail(CollectiveError::Local(injected.to_string())))
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.abort.failure().map_or(Ok(()), Err)
    }
}

impl Collective for Tcp {
    fn index(&self) -> u32 {
        self.gang.index
    }

    fn world_size(&self) -> u32 {
        self.gang.world_size()
    }

    fn all_reduce_i64(&mut self, buffer: &mut [i64]) -> Result<(), CollectiveError> {
        self.check()?;
        self.all_reduce(OpKind::ReduceI64, buffer)
    }

    fn all_reduce_f32(&mut self, buffer: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        self.all_reduce(OpKind::ReduceF32, buffer)
    }

    fn broadcast(&mut self, root: u32, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.check()?;
        self.pass_on(root, bytes)
    }

    fn bytes_sent(&self) -> u64 {
        self.payload
    }

    fn framing_bytes_sent(&self) -> u64 {
        self.framing
    }

    fn abort_handle(&self) -> Abort {
        self.abort.clone()
    }

    fn leave(mut self: Box<Self>) {
        self.flush();
        self.wires.leave();
    }
}

impl Tcp {
    /// Lets the sending thread finish what is queued.
    fn flush(&mut self) {
        self.out = None;
        if let Some(sending) = self.sending.take() {
            // A panic there has closed the line, which the peers see.
            drop(sending.join());
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Without a good-bye (an error, a panic) the lines close hard, and the peers see a member that is gone.
        if self.sending.is_some() {
            self.wires.close();
            self.flush();
        }
    }
}

/// Writes to the next member.
struct Sender {
    gang: Arc<Gang>,
    wires: Arc<Wires>,
    abort: Abort,
    after: Duration,
}

impl Sender {
    fn run(&self, mut line: TcpStream, queue: &Receiver<Vec<u8>>, done: &mpsc::Sender<Vec<u8>>) {
        while let Ok(buffer) = queue.recv() {
            if let Err(error) = line.write_all(&buffer) {
                explain(&self.gang, &self.wires, &self.abort, self.gang.next(), &error, self.after);
                return;
            }
            // Nobody takes it back after the last operation.
            drop(done.send(buffer));
        }
    }
}

/// Why the data line to `peer` broke: what its control line says, if it says so soon.
fn explain(
    gang: &Gang,
    wires: &Wires,
    abort: &Abort,
    peer: u32,
    error: &io::Error,
    after: Duration,
) -> CollectiveError {
    if is_timeout(error) {
        return abort.fail(CollectiveError::PeerStuck { peer: gang.peer(peer), after });
    }
    if let Some(failure) = abort.wait(EXPLANATION) {
        return failure;
    }
    let peer = gang.peer(peer);
    abort.fail(if wires.has_left(peer.index) {
        CollectiveError::PeerLeft { peer }
    } else {
        CollectiveError::PeerGone { peer, detail: error.to_string() }
    })
}
