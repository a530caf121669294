//! The course of the learning rate, equal to transformers' `get_*_schedule*`.

use std::f64::consts::PI;

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Stays at the peak.
    Constant,
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Falls with the square root of the steps, whose unit is the warm-up, or 10,000 steps without one.
    InverseSqrt,
    /// Stays at the peak, then falls to 0 along half a cosine (arXiv:2404.06395).
    Wsd {
        /// The last steps, in which it falls.
        decay_steps: u64,
    },
}

/// A learning rate for each step of a job, as a share of its peak.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    course: Course,
    warmup_steps: u64,
    total_steps: u64,
}

impl LearningRate {
    /// The course of a job of `total_steps` steps; the warm-up is linear from 0.
    pub fn new(course: Course, warmup_steps: u64, total_steps: u64) -> Self {
        Self { course, warmup_steps, total_steps }
    }

    /// Share of the peak in a step, counted from 1; transformers' schedules count the finished steps, one less.
    pub fn share(&self, step: u64) -> f64 {
        let finished = step.saturating_sub(1);
        let (done, warmup, total) = (finished as f64, self.warmup_steps as f64, self.total_steps as f64);
        if finished < self.warmup_steps {
            return done / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        match self.course {
            Course::Constant => 1.0,
            Course::Linear => ((total - done) / rest).max(0.0),
            Course::Cosine => half_cosine((done - warmup) / rest),
            Course::InverseSqrt => {
                let timescale = if self.warmup_steps == 0 { 10_000.0 } else { warmup };
                1.0 / ((done + (timescale - warmup)) / timescale).sqrt()
            }
            Course::Wsd { decay_steps } => {
                let falling = done - (total - decay_steps as f64);
                if falling < 0.0 {
                    1.0
                } else if done < total {
                    half_cosine(falling / decay_steps.max(1) as f64)
                } else {
                    0.0
                }
            }
        }
    }
}

/// From 1 at progress 0 to 0 at progress 1; libm, so that every platform has the same bits.
fn half_cosine(progress: f64) -> f64 {
    // num_cycles = 0.5, as transformers has it.
    (0.5 * (1.0 + libm::cos(PI * 0.5 * 2.0 * progress))).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with transformers 5: the schedule's `get_last_lr()` before each of 10 optimizer steps, peak 1, 3 of warm-up.
    fn check(course: Course, expected: [f64; 10]) {
        let rate = LearningRate::new(course, 3, 10);
        for (step, expected) in (1..).zip(expected) {
            let share = rate.share(step);
            assert!((share - expected).abs() < 1e-12, "{course:?}, step {step}: {share} is not {expected}");
        }
    }

    #[test]
    fn schedules_follow_transformers() {
        let (third, two_thirds) = (1.0 / 3.0, 2.0 / 3.0);
        check(Course::Constant, [0.0, third, two_thirds, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        check(
            Course::Linear,
            [0.0, third, two_thirds, 1.0, 6. / 7., 5. / 7., 4. / 7., 3. / 7., 2. / 7., 1. / 7.],
        );
        check(
            Course::Cosine,
            [
                0.0,
                third,
                two_thirds,
                1.0,
                0.9504844339512095,
                0.8117449009293668,
                0.6112604669781572,
                0.3887395330218429,
                0.1882550990706332,
                0.04951556604879048,
            ],
        );
        check(
            Course::InverseSqrt,
            [
                0.0,
                third,
                two_thirds,
                1.0,
                0.8660254037844387,
                0.7745966692414834,
                0.7071067811865475,
                0.6546536707079771,
                0.6123724356957945,
                0.5773502691896258,
            ],
        );
        check(
            Course::Wsd { decay_steps: 4 },
            [0.0, third, two_thirds, 1.0, 1.0, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627],
        );
        // A fall longer than what the warm-up leaves begins on its way.
        check(
            Course::Wsd { decay_steps: 9 },
            [
                0.0,
                third,
                two_thirds,
                0.883022221559489,
                0.75,
                0.5868240888334653,
                0.41317591116653485,
                0.2500000000000001,
                0.11697777844051105,
                0.03015368960704584,
            ],
        );
    }

    #[test]
    fn without_a_warm_up_the_unit_of_the_inverse_root_is_ten_thousand_steps() {
        let rate = LearningRate::new(Course::InverseSqrt, 0, 10);
        assert_eq!(rate.share(1), 1.0);
        assert!((rate.share(10) - 0.9995503035223668).abs() < 1e-12);
    }

    #[test]
    fn past_the_end_the_rate_is_zero() {
        let wsd = Course::Wsd { decay_steps: 2 };
        for course in [Course::Linear, Course::Cosine, wsd] {
            assert_eq!(LearningRate::new(course, 0, 4).share(5), 0.0);
        }
    }
}
