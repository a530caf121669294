//! How fast members compute: who is dealt how much, and who falls behind the others.

use std::time::Duration;

/// Steps in a row below half of the median speed until a member is called a straggler.
const STEPS: u32 = 5;
/// A member that was dealt nothing is taken for this much faster in the next step, so that it is tried again some day.
const HOPE: f64 = 1.1;
/// Weight of the last step in a member's own speed.
const NEWEST: f64 = 0.3;
/// Words are below 2^24.
const MOST: f64 = ((1 << 24) - 1) as f64;

/// A member's own speed in tokens a second, smoothed.
#[derive(Default)]
pub(super) struct OwnSpeed(Option<f64>);

impl OwnSpeed {
    /// So many tokens took so long.
    pub fn add(&mut self, tokens: u64, took: Duration) {
        let speed = match (self.0, tokens) {
            (None, 0) => return,
            (Some(before), 0) => before * HOPE,
            (before, tokens) => {
                let now = tokens as f64 / took.as_secs_f64().max(1e-6);
                before.map_or(now, |before| before + NEWEST * (now - before))
            }
        };
        self.0 = Some(speed.clamp(1.0, MOST));
    }

    /// As the others are told; 0: not known yet.
    pub fn word(&self) -> u32 {
        self.0.map_or(0, |speed| speed as u32)
    }
}

/// The gang's speeds in one generation, the same on every member.
pub(super) struct Pace {
    /// By member; 0: not known yet.
    speeds: Vec<u32>,
    /// By member: steps in a row far below the median.
    behind: Vec<u32>,
}

/// A member that has just become a straggler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Straggler {
    pub member: u32,
    /// The median speed over its own.
    pub factor: f64,
}

impl Pace {
    /// Nothing is known: all count as equal.
    pub fn new(members: usize) -> Self {
        Self { speeds: vec![0; members], behind: vec![0; members] }
    }

    /// What the next step is dealt by.
    pub fn speeds(&self) -> &[u32] {
        &self.speeds
    }

    /// Takes the speeds that the members told; returns who has just been far behind for long enough.
    pub fn take(&mut self, told: &[u32]) -> Vec<Straggler> {
        self.speeds.copy_from_slice(told);
        let Some(median) = median(told) else { return Vec::new() };
        let mut found = Vec::new();
        for (member, (&speed, behind)) in told.iter().zip(&mut self.behind).enumerate() {
            *behind = if speed > 0 && 2.0 * f64::from(speed) < median { *behind + 1 } else { 0 };
            if *behind == STEPS {
                found.push(Straggler { member: member as u32, factor: median / f64::from(speed) });
            }
        }
        found
    }

    /// How many members are far behind now.
    pub fn stragglers(&self) -> usize {
        self.behind.iter().filter(|&&steps| steps >= STEPS).count()
    }
}

/// Of those that are known; the mean of the middle two.
fn median(speeds: &[u32]) -> Option<f64> {
    let mut known: Vec<u32> = speeds.iter().copied().filter(|&speed| speed > 0).collect();
    known.sort_unstable();
    let (low, high) = (known.get(known.len().checked_sub(1)? / 2)?, known.get(known.len() / 2)?);
    Some(f64::midpoint(f64::from(*low), f64::from(*high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straggler_is_named_once_while_it_lasts() {
        let mut pace = Pace::new(3);
        for _ in 1..STEPS {
            assert_eq!(pace.take(&[1000, 200, 1000]), []);
        }
        assert_eq!(pace.take(&[1000, 200, 1000]), [Straggler { member: 1, factor: 5.0 }]);
        assert_eq!((pace.take(&[1000, 200, 1000]), pace.stragglers()), (vec![], 1));
        assert_eq!((pace.take(&[1000, 600, 1000]), pace.stragglers()), (vec![], 0));
        assert_eq!(pace.take(&[0, 0, 0]), []);
    }

    #[test]
    fn a_member_that_is_dealt_nothing_is_tried_again() {
        let mut own = OwnSpeed::default();
        own.add(0, Duration::from_secs(1));
        assert_eq!(own.word(), 0);
        own.add(100, Duration::from_secs(1));
        assert_eq!(own.word(), 100);
        (0..10).for_each(|_| own.add(0, Duration::from_secs(1)));
        assert!(own.word() > 250);
        own.add(u64::MAX, Duration::from_secs(1));
        assert!(own.word() < 1 << 24);
    }

    #[test]
    fn the_median_is_of_the_known() {
        assert_eq!(median(&[0, 0]), None);
        assert_eq!(median(&[0, 5]), Some(5.0));
        assert_eq!(median(&[1, 9]), Some(5.0));
        assert_eq!(median(&[9, 1, 4]), Some(4.0));
    }
}
