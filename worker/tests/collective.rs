//! Every collective passes the conformance suite; and what only TCP can get wrong.

#![allow(clippy::unwrap_used)]

use std::{io::Write, net::TcpStream, thread, time::Duration};

use lorafleet_proto::v1 as pb;
use lorafleet_worker::collective::{
    Abort, Collective, CollectiveError, Peer,
    conformance::{self, Harness, Joined, fence},
    solo::Solo,
    tcp::{self, Gang, Listener, TcpOptions},
};

struct SoloHarness;

impl Harness for SoloHarness {
    fn join(&self, fences: &[pb::Fence]) -> Vec<Joined> {
        fences.iter().map(|_| Ok(Box::new(Solo::new(Abort::new())) as Box<dyn Collective>)).collect()
    }
}

/// Members in threads of this process, each with its own listener, as worker processes have.
struct TcpHarness {
    /// Options by index; the last one serves all others.
    options: Vec<TcpOptions>,
    /// The world size that a member believes in, where it differs.
    believed: Option<(u32, u32)>,
}

impl TcpHarness {
    fn new() -> Self {
        Self { options: vec![quick()], believed: None }
    }
}

fn quick() -> TcpOptions {
    TcpOptions {
        ping_every: Duration::from_millis(100),
        silence: Duration::from_secs(10),
        ..TcpOptions::default()
    }
}

impl Harness for TcpHarness {
    fn join(&self, fences: &[pb::Fence]) -> Vec<Joined> {
        let listeners: Vec<Listener> =
            fences.iter().map(|_| Listener::bind("127.0.0.1:0", Duration::from_secs(5)).unwrap()).collect();
        let members: Vec<Peer> = listeners
            .iter()
            .zip(0..)
            .map(|(listener, index)| Peer {
                index,
                worker: format!("worker-{index}"),
                address: listener.local_address().to_string(),
            })
            .collect();
        thread::scope(|scope| {
            let joining: Vec<_> = fences
                .iter()
                .zip(&listeners)
                .zip(0..)
                .map(|((fence, listener), index)| {
                    let mut members = members.clone();
                    if let Some((who, size)) = self.believed
                        && who == index
                    {
                        members.truncate(size as usize);
                    }
                    let gang = Gang { job: "jobs/test".into(), fence: fence.clone(), index, members };
                    let last = self.options.last().unwrap();
                    let options = self.options.get(index as usize).unwrap_or(last);
                    scope.spawn(move || tcp::join(listener, gang, options, &Abort::new()))
                })
                .collect();
            joining.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

#[test]
fn solo_conforms() {
    conformance::run(&SoloHarness, 1);
}

#[test]
fn tcp_conforms_alone() {
    conformance::run(&TcpHarness::new(), 1);
}

#[test]
fn tcp_conforms_in_pairs() {
    conformance::run(&TcpHarness::new(), 2);
}

#[test]
fn tcp_conforms_in_threes() {
    conformance::run(&TcpHarness::new(), 3);
}

#[test]
fn tcp_conforms_in_fours() {
    conformance::run(&TcpHarness::new(), 4);
}

/// A frozen process keeps its sockets open; only its pings stop.
#[test]
fn a_silent_member_is_told_from_one_that_computes() {
    let silent =
        TcpOptions { ping_every: Duration::from_secs(3600), silence: Duration::from_secs(60), ..quick() };
    let strict = TcpOptions { silence: Duration::from_secs(1), ..quick() };
    let harness = TcpHarness { options: vec![strict.clone(), silent, strict], believed: None };
    let mut members: Vec<_> =
        harness.join(&[fence(1, 1), fence(1, 1), fence(1, 1)]).into_iter().map(Result::unwrap).collect();
    let frozen = members.remove(1);
    let waiting: Vec<_> = members
        .into_iter()
        .map(|mut member| thread::spawn(move || member.all_reduce_i64(&mut [1]).unwrap_err()))
        .collect();
    let errors: Vec<CollectiveError> = waiting.into_iter().map(|error| error.join().unwrap()).collect();
    assert!(errors.iter().all(|error| error.suspects() == [1]), "{errors:?}");
    assert!(errors.iter().any(|error| error.to_string().contains("silent")), "{errors:?}");
    drop(frozen);
}

#[test]
fn a_member_that_pings_but_never_takes_part_is_stuck() {
    let harness = TcpHarness {
        options: vec![TcpOptions { read: Duration::from_millis(300), ..quick() }],
        believed: None,
    };
    let mut members = harness.join(&[fence(1, 1), fence(1, 1)]);
    let error = members[0].as_mut().unwrap().all_reduce_i64(&mut [1]).unwrap_err();
    assert!(matches!(error, CollectiveError::PeerStuck { .. }), "{error}");
    assert_eq!(error.suspects(), [1]);
}

#[test]
fn another_world_size_is_refused_with_both_values() {
    let harness = TcpHarness { options: vec![quick()], believed: Some((1, 2)) };
    let errors: Vec<String> = harness
        .join(&[fence(1, 1), fence(1, 1), fence(1, 1)])
        .into_iter()
        .map(|joined| joined.err().unwrap().to_string())
        .collect();
    let both = |error: &String| {
        error.contains("world_size: this member has") && error.contains('3') && error.contains('2')
    };
    assert!(errors.iter().any(both), "{errors:?}");
}

#[test]
fn a_missing_member_is_named_at_the_deadline() {
    let listener = Listener::bind("127.0.0.1:0", Duration::from_secs(1)).unwrap();
    // A port that nobody answers on: bound, then closed.
    let gone = Listener::bind("127.0.0.1:0", Duration::from_secs(1)).unwrap().local_address();
    let peer = |index, address: std::net::SocketAddr| Peer {
        index,
        worker: format!("worker-{index}"),
        address: address.to_string(),
    };
    let members = vec![peer(0, listener.local_address()), peer(1, gone)];
    let options = TcpOptions { refused: Duration::from_millis(100), ..quick() };
    let gang = |index| Gang { job: "jobs/test".into(), fence: fence(1, 1), index, members: members.clone() };
    let error = tcp::join(&listener, gang(0), &options, &Abort::new()).err().unwrap();
    assert_eq!(error.suspects(), [1], "{error}");
    let abort = Abort::new();
    abort.abort("stopped by its user");
    let error = tcp::join(&listener, gang(0), &options, &abort).err().unwrap();
    assert!(error.to_string().contains("stopped by its user"), "{error}");
}

#[test]
fn strangers_do_no_harm() {
    let listener = Listener::bind("127.0.0.1:0", Duration::from_millis(200)).unwrap();
    let mut http = TcpStream::connect(listener.local_address()).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let _silent = TcpStream::connect(listener.local_address()).unwrap();
    drop(http);
    // The listener still answers members.
    conformance::run(&TcpHarness::new(), 2);
}
