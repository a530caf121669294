//! The suite that every collective must pass, whatever it runs on; each check panics with what is wrong.
//!
//! A test gives a [`Harness`] that joins gangs, and calls [`run`] for each size.

use std::{sync::mpsc, thread, time::Duration};

use lorafleet_proto::v1 as pb;

use super::{Collective, CollectiveError};

/// An operation that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of one member's try to join.
pub type Joined = Result<Box<dyn Collective>, CollectiveError>;

/// Makes gangs of the collective under test.
pub trait Harness {
    /// Lets as many members as there are fences join one gang at the same time, each under its own fence.
    fn join(&self, fences: &[pb::Fence]) -> Vec<Joined>;
}

/// A fence for the suite's gangs.
pub fn fence(attempt: u32, generation: u32) -> pb::Fence {
    let generation_id = format!("{attempt:08x}{generation:08x}");
    pb::Fence { attempt, generation, generation_id }
}

/// The whole suite, with gangs of `world_size`.
pub fn run(harness: &impl Harness, world_size: u32) {
    integers_sum_exactly(harness, world_size);
    floats_agree_to_the_bit(harness, world_size);
    broadcasts_reach_all(harness, world_size);
    a_broadcast_that_is_cut_changes_nothing(harness, world_size);
    bytes_follow_the_formula(harness, world_size);
    a_sum_too_large_is_an_error(harness, world_size);
    abort_ends_every_member(harness, world_size);
    a_lost_member_ends_the_others(harness, world_size);
    a_polite_member_harms_nobody(harness, world_size);
    members_out_of_step_are_told(harness, world_size);
    another_fence_is_refused(harness, world_size);
}

/// Sums of integers, of empty, tiny and large buffers, several in a row.
fn integers_sum_exactly(harness: &impl Harness, world_size: u32) {
    for (index, sums) in on_all(gang(harness, world_size), |member| {
        let mut results = Vec::new();
        for length in LENGTHS {
            let mut buffer = integers(member.index(), length);
            member.all_reduce_i64(&mut buffer)?;
            results.push(buffer);
        }
        Ok(results)
    }) {
        for (sum, length) in sums.expect("sums of integers").into_iter().zip(LENGTHS) {
            let mut expected = vec![0i64; length];
            for member in 0..world_size {
                expected.iter_mut().zip(integers(member, length)).for_each(|(sum, term)| *sum += term);
            }
            assert_eq!(sum, expected, "member {index} of {world_size}, {length} integers");
        }
    }
}

/// Sums of floats: the same bits on all members, and near the true sum.
fn floats_agree_to_the_bit(harness: &impl Harness, world_size: u32) {
    let floats = |member: u32, length| -> Vec<f32> {
        integers(member, length).into_iter().map(|number| number as f32 / 1e9).collect()
    };
    let all = on_all(gang(harness, world_size), move |member| {
        let mut results = Vec::new();
        for length in LENGTHS {
            let mut buffer = floats(member.index(), length);
            member.all_reduce_f32(&mut buffer)?;
            results.push(buffer);
        }
        Ok(results)
    });
    let sums: Vec<Vec<Vec<f32>>> = all.into_iter().map(|(_, sums)| sums.expect("sums of floats")).collect();
    for member in &sums {
        for (at, length) in LENGTHS.into_iter().enumerate() {
            let bits =
                |numbers: &[f32]| -> Vec<u32> { numbers.iter().map(|number| number.to_bits()).collect() };
            assert_eq!(bits(&member[at]), bits(&sums[0][at]), "{length} floats differ between members");
        }
    }
    for (at, length) in LENGTHS.into_iter().enumerate() {
        let terms: Vec<Vec<f32>> = (0..world_size).map(|member| floats(member, length)).collect();
        for (element, sum) in sums[0][at].iter().enumerate() {
            let terms = terms.iter().map(|terms| f64::from(terms[element]));
            let (sum, expected) = (f64::from(*sum), terms.clone().sum::<f64>());
            let tolerance = 1e-6 * terms.map(f64::abs).sum::<f64>();
            assert!((sum - expected).abs() <= tolerance, "element {element}: {sum}, expected {expected}");
        }
    }
}

/// Broadcasts from every member, of nothing, little and much.
fn broadcasts_reach_all(harness: &impl Harness, world_size: u32) {
    let message = |root: u32, length: usize| -> Vec<u8> {
        integers(root, length).into_iter().map(|number| number as u8).collect()
    };
    for (index, received) in on_all(gang(harness, world_size), move |member| {
        let mut results = Vec::new();
        for root in 0..member.world_size() {
            for length in LENGTHS {
                let ours = if member.index() == root { message(root, length) } else { b"old".to_vec() };
                let mut bytes = ours;
                member.broadcast(root, &mut bytes)?;
                results.push(bytes);
            }
        }
        Ok(results)
    }) {
        let received = received.expect("broadcasts");
        let expected = (0..world_size).flat_map(|root| LENGTHS.map(|length| message(root, length)));
        assert!(received.into_iter().eq(expected), "member {index} received something else");
    }
}

/// 2(N−1)/N of the buffer exactly where N divides it; under 1 KiB more otherwise, headers included.
fn bytes_follow_the_formula(harness: &impl Harness, world_size: u32) {
    for length in [0, 1, 12_000, 120_000, 120_001, 119_999] {
        for (index, sent) in on_all(gang(harness, world_size), move |member| {
            let before = (member.bytes_sent(), member.framing_bytes_sent());
            member.all_reduce_i64(&mut vec![1; length])?;
            let exact = member.bytes_sent() - before.0;
            member.all_reduce_f32(&mut vec![1.0; length])?;
            let floats = member.bytes_sent() - before.0 - exact;
            Ok([exact, floats, member.framing_bytes_sent() - before.1])
        }) {
            let [exact, floats, framing] = sent.expect("counted sums");
            let (members, length) = (u64::from(world_size), length as u64);
            for (payload, width) in [(exact, 8), (floats, 4)] {
                let formula = 2 * (members - 1) * length * width / members;
                if length.is_multiple_of(members) {
                    assert_eq!(payload, formula, "member {index} of {members}, {length} elements");
                }
                let more = payload + framing;
                assert!(
                    more <= formula + 1023,
                    "member {index} of {members} sent {more} instead of {formula}"
                );
            }
        }
    }
}

/// Integers that do not fit are an error on at least one member, and every member ends.
fn a_sum_too_large_is_an_error(harness: &impl Harness, world_size: u32) {
    if world_size < 2 {
        return;
    }
    let results = on_all(gang(harness, world_size), |member| {
        member.all_reduce_i64(&mut [i64::MAX; 64])?;
        // Whoever got through learns of it in the next operation.
        member.all_reduce_i64(&mut [0; 64])
    });
    assert!(results.iter().all(|(_, result)| result.is_err()), "{results:?}");
    let overflow = |error: &CollectiveError| error.to_string().contains("64 bits");
    assert!(results.iter().any(|(_, result)| result.as_ref().is_err_and(overflow)), "{results:?}");
}

/// Whoever gets an error from a broadcast still has the bytes that it had before.
fn a_broadcast_that_is_cut_changes_nothing(harness: &impl Harness, world_size: u32) {
    let before = |index: u32| vec![index as u8; 5];
    let whole = vec![42u8; 24 << 20];
    let (sent, expected) = (whole.clone(), whole);
    let results = on_all(gang(harness, world_size), move |member| {
        let root = member.index() == 0;
        let mut bytes = if root { sent.clone() } else { before(member.index()) };
        let abort = member.abort_handle();
        // From another thread, at any moment of the broadcast.
        let cutting = root.then(|| thread::spawn(move || abort.abort("cut in the middle")));
        let result = member.broadcast(0, &mut bytes);
        if let Some(cutting) = cutting {
            cutting.join().expect("aborting thread");
        }
        Ok((result.is_ok(), bytes))
    });
    for (index, result) in results.into_iter().skip(1) {
        let (whole, bytes) = result.expect("checked above");
        let right = if whole { &expected } else { &before(index) };
        assert!(bytes == *right, "member {index} is left with {} bytes of a broken broadcast", bytes.len());
    }
}

/// An abort wakes the member that waits in an operation, and its peers learn the reason.
fn abort_ends_every_member(harness: &impl Harness, world_size: u32) {
    let mut members = gang(harness, world_size);
    if world_size == 1 {
        members[0].abort_handle().abort("cancelled by its user");
        let error = members[0].all_reduce_i64(&mut [1]).expect_err("aborted");
        assert!(error.to_string().contains("cancelled by its user"), "{error}");
        return;
    }
    // The last member never takes part; the others wait for it until the first is aborted from another thread.
    let idle = members.pop().expect("two members or more");
    let abort = members[0].abort_handle();
    let aborting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        abort.abort("cancelled by its user");
    });
    for (index, result) in on_all(members, |member| member.all_reduce_i64(&mut [1; 100])) {
        let error = result.expect_err("aborted");
        assert!(error.to_string().contains("cancelled by its user"), "member {index}: {error}");
    }
    aborting.join().expect("aborting thread");
    assert_eq!(idle.world_size(), world_size);
}

/// A member that vanishes in the middle of an operation is named by every survivor.
fn a_lost_member_ends_the_others(harness: &impl Harness, world_size: u32) {
    for victim in 0..world_size {
        if world_size < 2 {
            return;
        }
        let results = on_all_owned(gang(harness, world_size), move |mut member| {
            let mut buffer = integers(member.index(), 100_000);
            member.all_reduce_i64(&mut buffer)?;
            if member.index() == victim {
                drop(member);
                return Ok(());
            }
            loop {
                member.all_reduce_i64(&mut buffer.iter().map(|number| number % 1000).collect::<Vec<_>>())?;
            }
        });
        let mut seen = 0;
        for (index, result) in results {
            if index != victim {
                let error = result.expect_err("a member is lost");
                assert_eq!(error.suspects(), [victim], "member {index}: {error}");
                let evidence = error.suspicions();
                seen += evidence.len();
                assert!(
                    evidence.iter().all(|suspicion| suspicion.evidence() == pb::Evidence::Gone),
                    "{error}"
                );
            }
        }
        assert!(seen > 0, "nobody saw it itself");
    }
}

/// Members that leave one after the other after the last operation see no error.
fn a_polite_member_harms_nobody(harness: &impl Harness, world_size: u32) {
    for (index, result) in on_all_owned(gang(harness, world_size), |mut member| {
        let mut buffer = integers(member.index(), 100_000);
        member.all_reduce_i64(&mut buffer)?;
        thread::sleep(Duration::from_millis(20 * u64::from(member.index())));
        let abort = member.abort_handle();
        let failure = abort.failure();
        member.leave();
        failure.map_or(Ok(()), Err)
    }) {
        result.unwrap_or_else(|error| panic!("member {index}: {error}"));
    }
}

/// Buffers of different lengths are an error on every member, not a wrong sum.
fn members_out_of_step_are_told(harness: &impl Harness, world_size: u32) {
    if world_size < 2 {
        return;
    }
    let results = on_all(gang(harness, world_size), |member| {
        let length = if member.index() == 0 { 10 } else { 11 };
        member.all_reduce_i64(&mut vec![0; length])?;
        member.all_reduce_i64(&mut vec![0; length])
    });
    assert!(results.iter().all(|(_, result)| result.is_err()), "{results:?}");
    let out_of_step = |error: &CollectiveError| error.to_string().contains("out of step");
    assert!(results.iter().any(|(_, result)| result.as_ref().is_err_and(out_of_step)), "{results:?}");
}

/// A member with another fence is refused, also when it differs in its random id only, with both fences in the message;
/// nobody joins.
fn another_fence_is_refused(harness: &impl Harness, world_size: u32) {
    if world_size < 2 {
        return;
    }
    let mut fences = vec![fence(3, 2); world_size as usize];
    fences[0].generation_id = "another".to_owned();
    let errors: Vec<String> = harness
        .join(&fences)
        .into_iter()
        .map(|joined| joined.err().expect("a gang with two fences").to_string())
        .collect();
    let both = errors
        .iter()
        .any(|error| error.contains(&fences[0].generation_id) && error.contains(&fences[1].generation_id));
    assert!(both, "nobody names both fences: {errors:?}");
}

/// Lengths of buffers that the suite tries: none, fewer than members, uneven, many chunks.
const LENGTHS: [usize; 6] = [0, 1, 3, 7, 1000, 300_001];

/// Numbers that differ between members, up to 2^40.
fn integers(member: u32, length: usize) -> Vec<i64> {
    let mut state = u64::from(member).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(length as u64);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 23) as i64 - (1 << 40)
    };
    (0..length).map(next).collect()
}

fn gang(harness: &impl Harness, world_size: u32) -> Vec<Box<dyn Collective>> {
    let members = harness.join(&vec![fence(1, 1); world_size as usize]);
    let members: Vec<_> = members.into_iter().map(|joined| joined.expect("the gang joins")).collect();
    for (index, member) in members.iter().enumerate() {
        assert_eq!((member.index() as usize, member.world_size()), (index, world_size));
    }
    members
}

/// Runs `work` on every member at once; the members live until all are done.
fn on_all<T: Send + 'static>(
    members: Vec<Box<dyn Collective>>,
    work: impl Fn(&mut dyn Collective) -> Result<T, CollectiveError> + Clone + Send + 'static,
) -> Vec<(u32, Result<T, CollectiveError>)> {
    let results = on_all_owned(members, move |mut member| {
        let result = work(&mut *member);
        Ok((result, member))
    });
    let finished: Vec<_> = results
        .into_iter()
        .map(|(index, result)| (index, result.unwrap_or_else(|error| panic!("member {index}: {error}"))))
        .collect();
    finished.into_iter().map(|(index, (result, _member))| (index, result)).collect()
}

/// Runs `work` on every member at once; in order of index. Panics when a member hangs.
fn on_all_owned<T: Send + 'static>(
    members: Vec<Box<dyn Collective>>,
    work: impl Fn(Box<dyn Collective>) -> Result<T, CollectiveError> + Clone + Send + 'static,
) -> Vec<(u32, Result<T, CollectiveError>)> {
    let (done, results) = mpsc::channel();
    let count = members.len();
    for member in members {
        let (done, work) = (done.clone(), work.clone());
        thread::spawn(move || {
            let index = member.index();
            let result = work(member);
            // The suite has failed already if nobody listens.
            drop(done.send((index, result)));
        });
    }
    let next = |_| results.recv_timeout(PATIENCE).expect("a member hangs, or its check panicked");
    let mut results: Vec<_> = (0..count).map(next).collect();
    results.sort_by_key(|(index, _)| *index);
    results
}
