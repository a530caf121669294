//! Whose lease ends: a pure rule over how long each worker's counter has stood still and who works with whom.
//!
//! A worker is silent when it was not heard of for a whole lease. When all members of a gang fall silent at once, it is
//! more likely that they are cut off from the coordinators than that all of them died: they train on, and are waited
//! for longer, unless it was seen that each of them closed its connection. A gang of one gets no such patience: nobody
//! is there to go on with its work.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// How long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With one worker among others that are heard.
    pub lease: Duration,
    /// With a whole gang.
    pub gang: Duration,
}

/// What is known of one worker's silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Its counter was watched standing still for this long.
    pub still: Duration,
    /// Its connection closed, and none was opened since.
    pub closed: bool,
}

/// The workers whose leases end now, in no order. `gangs` names the members of each gang that are still there.
pub fn ended<K: Copy + Eq + Hash>(
    workers: &HashMap<K, Silence>,
    gangs: &[Vec<K>],
    patience: Patience,
) -> Vec<K> {
    let mut waited_for: HashMap<K, bool> = HashMap::new();
    for gang in gangs {
        let wait = is_waited_for(workers, gang, patience);
        for member in gang {
            // Where one of its gangs heard of others, a worker is silent by itself.
            waited_for.entry(*member).and_modify(|before| *before &= wait).or_insert(wait);
        }
    }
    let limit = |worker| match waited_for.get(worker) {
        Some(true) => patience.gang.max(patience.lease),
        Some(false) | None => patience.lease,
    };
    workers
        .iter()
        .filter(|(worker, silence)| silence.still >= limit(worker))
        .map(|(worker, _)| *worker)
        .collect()
}

/// All of it may be cut off. A live worker is heard of at least every third of a lease, so half a lease tells those
/// that have fallen silent from those that have not, although not all did at the same instant.
fn is_waited_for<K: Copy + Eq + Hash>(workers: &HashMap<K, Silence>, gang: &[K], patience: Patience) -> bool {
    let mut known = gang.iter().filter_map(|member| workers.get(member));
    gang.len() > 1
        && known.clone().all(|silence| silence.still >= patience.lease / 2)
        && known.any(|silence| !silence.closed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Patience = Patience { lease: Duration::from_secs(15), gang: Duration::from_secs(60) };

    fn silent(seconds: u64) -> Silence {
        Silence { still: Duration::from_secs(seconds), closed: false }
    }

    fn closed(seconds: u64) -> Silence {
        Silence { closed: true, ..silent(seconds) }
    }

    fn end(workers: &[(char, Silence)], gangs: &[&str]) -> String {
        let gangs: Vec<Vec<char>> = gangs.iter().map(|gang| gang.chars().collect()).collect();
        let mut ended = ended(&workers.iter().copied().collect(), &gangs, PATIENCE);
        ended.sort_unstable();
        ended.into_iter().collect()
    }

    #[test]
    fn one_silent_member_among_others_has_a_plain_lease() {
        assert_eq!(end(&[('a', silent(15)), ('b', silent(3))], &["ab"]), "a");
        assert_eq!(end(&[('a', silent(14)), ('b', silent(3))], &["ab"]), "");
    }

    #[test]
    fn a_whole_gang_is_waited_for_although_its_last_heartbeats_were_not_at_one_instant() {
        assert_eq!(end(&[('a', silent(16)), ('b', silent(11))], &["ab"]), "");
        assert_eq!(end(&[('a', silent(59)), ('b', silent(59))], &["ab"]), "");
        assert_eq!(end(&[('a', silent(60)), ('b', silent(61))], &["ab"]), "ab");
    }

    #[test]
    fn closed_connections_idle_workers_and_gangs_of_one_have_a_plain_lease() {
        assert_eq!(end(&[('a', closed(15)), ('b', closed(15))], &["ab"]), "ab");
        assert_eq!(
            end(&[('a', closed(15)), ('b', silent(15))], &["ab"]),
            "",
            "b may go on, and knows about a"
        );
        assert_eq!(end(&[('a', silent(15)), ('b', silent(15))], &["a"]), "ab");
    }

    #[test]
    fn a_worker_of_two_gangs_is_judged_by_the_one_that_hears_of_others() {
        assert_eq!(end(&[('a', silent(15)), ('b', silent(15)), ('c', silent(1))], &["ab", "ac"]), "a");
    }

    proptest! {
        /// Nobody loses a lease before a whole one was watched; everybody has lost it after the longer patience.
        #[test]
        fn never_before_a_lease_and_never_for_ever(
            still in prop::collection::vec((0u64..90, any::<bool>()), 1..8),
            gangs in prop::collection::vec(prop::collection::vec(0usize..8, 1..5), 0..4),
        ) {
            let workers: HashMap<usize, Silence> = still.iter().enumerate()
                .map(|(i, (seconds, closed))| (i, Silence { closed: *closed, ..silent(*seconds) })).collect();
            let ended = ended(&workers, &gangs, PATIENCE);
            for (worker, silence) in &workers {
                let lost = ended.contains(worker);
                prop_assert!(!lost || silence.still >= PATIENCE.lease);
                prop_assert!(lost || silence.still < PATIENCE.gang);
            }
        }
    }
}
