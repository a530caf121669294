//! Every collective passes the conformance suite; and what only TCP can get wrong.

#![allow(clippy::unwrap_used)]

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_worker::collective::{
    Abort, Collective, CollectiveError, Peer,
    conformance::{self, Harness, Joined, fence},
    solo::Solo,
    tcp::{self, Gang, Listener, TcpOptions},
};
use pb::Evidence;

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
    assert!(errors.iter().any(|error| evidence(error) == [(1, Evidence::Silent)]), "{errors:?}");
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
    assert_eq!(evidence(&error), [(1, Evidence::Stuck)], "{error}");
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

/// A gang of these addresses, as its member at `index` sees it.
fn gang_of(addresses: &[SocketAddr], generation: u32, index: u32) -> Gang {
    let peer = |(index, address): (u32, &SocketAddr)| Peer {
        index,
        worker: format!("worker-{index}"),
        address: address.to_string(),
    };
    let members = (0..).zip(addresses).map(peer).collect();
    Gang { job: "jobs/test".into(), fence: fence(1, generation), index, members }
}

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0", Duration::from_secs(5)).unwrap()
}

/// A port that nobody answers on: bound, then closed.
fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_member_that_is_not_there_is_named_by_all() {
    let listeners = [listener(), listener()];
    let addresses = [listeners[0].local_address(), listeners[1].local_address(), closed_port()];
    let options = TcpOptions { refused: Duration::from_millis(100), ..quick() };
    let errors: Vec<CollectiveError> = thread::scope(|scope| {
        let join = |index: u32| {
            let (listener, options) = (&listeners[index as usize], &options);
            scope.spawn(move || {
                tcp::join(listener, gang_of(&addresses, 1, index), options, &Abort::new()).err().unwrap()
            })
        };
        [join(0), join(1)].map(|thread| thread.join().unwrap()).into()
    });
    // Who finds out first tells the other, or is refused by it.
    let direct = |error: &CollectiveError| evidence(error) == [(2, Evidence::Unreachable)];
    assert!(errors.iter().any(direct), "{errors:?}");
    assert!(errors.iter().all(|error| evidence(error).is_empty() || direct(error)), "{errors:?}");
}

#[test]
fn a_member_that_accepts_but_does_not_answer_is_unreachable() {
    let (listener, frozen) = (listener(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [listener.local_address(), frozen.local_addr().unwrap()];
    let options = TcpOptions { silence: Duration::from_millis(500), ..quick() };
    let error = tcp::join(&listener, gang_of(&addresses, 1, 0), &options, &Abort::new()).err().unwrap();
    assert_eq!(evidence(&error), [(1, Evidence::Unreachable)], "{error}");
}

#[test]
fn a_join_ends_with_its_abort_handle() {
    let (listener, frozen) = (listener(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [listener.local_address(), frozen.local_addr().unwrap()];
    let abort = Abort::new();
    let aborting = abort.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        aborting.abort("stopped by its user");
    });
    let options = TcpOptions { silence: Duration::from_secs(3600), ..quick() };
    let error = tcp::join(&listener, gang_of(&addresses, 1, 0), &options, &abort).err().unwrap();
    assert!(error.to_string().contains("stopped by its user"), "{error}");
    thread.join().unwrap();
}

/// A member that still computes answers "later" for much longer than silence lasts, and is waited for.
#[test]
fn a_late_member_is_waited_for() {
    let listeners = [listener(), listener(), listener()];
    let addresses: Vec<SocketAddr> = listeners.iter().map(Listener::local_address).collect();
    let options = TcpOptions { silence: Duration::from_millis(700), ..quick() };
    thread::scope(|scope| {
        let join = |index: u32, late: Duration| {
            let (listener, options, addresses) = (&listeners[index as usize], &options, &addresses);
            scope.spawn(move || {
                thread::sleep(late);
                let mut member = tcp::join(listener, gang_of(addresses, 1, index), options, &Abort::new())?;
                let mut sum = [1];
                member.all_reduce_i64(&mut sum)?;
                member.leave();
                Ok::<_, CollectiveError>(sum[0])
            })
        };
        let late = Duration::from_secs(2);
        for thread in [join(0, Duration::ZERO), join(1, late), join(2, Duration::ZERO)] {
            assert_eq!(thread.join().unwrap().unwrap(), 3);
        }
    });
}

#[test]
fn a_member_that_has_moved_on_refuses_who_is_behind() {
    let listeners = [listener(), listener()];
    let addresses: Vec<SocketAddr> = listeners.iter().map(Listener::local_address).collect();
    let behind = tcp_join_in_generation(&listeners, &addresses, 1, 2);
    let text = behind.to_string();
    assert!(matches!(behind, CollectiveError::Refused { .. }), "{text}");
    assert!(
        text.contains("has moved on to generation 2") && text.contains(&fence(1, 1).generation_id),
        "{text}"
    );
    assert_eq!(behind.suspicions(), []);
    // Generation 2 was given up when it was aborted, which who comes late is told.
    let late = tcp::join(&listeners[0], gang_of(&addresses, 2, 0), &quick(), &Abort::new()).err().unwrap();
    assert!(late.to_string().contains("has given up generation 2"), "{late}");
}

/// Member 0 joins `ours` while member 1 waits in generation `theirs`: what member 0 gets.
fn tcp_join_in_generation(
    listeners: &[Listener; 2],
    addresses: &[SocketAddr],
    ours: u32,
    theirs: u32,
) -> CollectiveError {
    let abort = Abort::new();
    // A member 0 that is frozen keeps member 1 waiting.
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let waiting = gang_of(&[frozen.local_addr().unwrap(), addresses[1]], theirs, 1);
    let patient = TcpOptions { silence: Duration::from_secs(3600), ..quick() };
    thread::scope(|scope| {
        let other = scope.spawn(|| tcp::join(&listeners[1], waiting, &patient, &abort).err().unwrap());
        // It has begun once it has called.
        drop(frozen.accept().unwrap());
        let error = tcp::join(&listeners[0], gang_of(addresses, ours, 0), &quick(), &Abort::new());
        abort.abort("the test is over");
        other.join().unwrap();
        error.err().unwrap()
    })
}

/// Killed together: nobody is blamed but the dead.
#[test]
fn two_members_that_die_at_once_are_both_seen() {
    let mut members: Vec<_> =
        TcpHarness::new().join(&vec![fence(1, 1); 4]).into_iter().map(Result::unwrap).collect();
    let dead = [members.remove(1), members.remove(1)];
    let waiting: Vec<_> = members
        .into_iter()
        .map(|mut member| thread::spawn(move || member.all_reduce_i64(&mut [1]).unwrap_err()))
        .collect();
    drop(dead);
    let mut all = 0;
    for thread in waiting {
        let error = thread.join().unwrap();
        let seen = evidence(&error);
        all += seen.len();
        assert!(
            seen.iter().all(|(index, kind)| [1, 2].contains(index) && *kind == Evidence::Gone),
            "{error}"
        );
    }
    assert!(all > 0, "nobody saw it itself");
}

fn evidence(error: &CollectiveError) -> Vec<(u32, Evidence)> {
    error.suspicions().iter().map(|suspicion| (suspicion.index, suspicion.evidence())).collect()
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
