//! The course of the learning rate, equal to transformers' `get_*_schedule_with_warmup`.

use lorafleet_spec::job::Schedule;

/// A learning rate for each step of a job.
#[derive(Clone, Debug)]
pub struct LearningRate {
    peak: f64,
    schedule: Schedule,
    warmup_steps: u64,
    total_steps: u64,
}

impl LearningRate {
    /// The course of a job of `total_steps` steps whose peak is `peak`.
    pub fn new(peak: f64, schedule: Schedule, warmup_steps: u64, total_steps: u64) -> Self {
        Self { peak, schedule, warmup_steps, total_steps }
    }

    /// Learning rate of a step, counted from 1; transformers' schedules count the finished steps, one less.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step.saturating_sub(1))
    }

    fn factor(&self, finished: u64) -> f64 {
        let (done, warmup, total) = (finished as f64, self.warmup_steps as f64, self.total_steps as f64);
        if finished < self.warmup_steps {
            return done / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => ((total - done) / rest).max(0.0),
            Schedule::Cosine => {
                // num_cycles = 0.5, as transformers has it; libm, so that every platform has the same bits.
                let progress = (done - warmup) / rest;
                (0.5 * (1.0 + libm::cos(std::f64::consts::PI * 0.5 * 2.0 * progress))).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with transformers 5: the schedule's `get_last_lr()` before each of 10 optimizer steps, peak 1, 3 of warm-up.
    fn check(schedule: Schedule, expected: [f64; 10]) {
        let rate = LearningRate::new(1.0, schedule, 3, 10);
        for (step, expected) in (1..).zip(expected) {
            assert!(
                (rate.at(step) - expected).abs() < 1e-12,
                "step {step}: {} is not {expected}",
                rate.at(step)
            );
        }
    }

    #[test]
    fn schedules_follow_transformers() {
        let (third, two_thirds) = (1.0 / 3.0, 2.0 / 3.0);
        check(Schedule::Constant, [0.0, third, two_thirds, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        check(
            Schedule::Linear,
            [0.0, third, two_thirds, 1.0, 6. / 7., 5. / 7., 4. / 7., 3. / 7., 2. / 7., 1. / 7.],
        );
        check(
            Schedule::Cosine,
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
    }

    #[test]
    fn past_the_end_the_rate_is_zero() {
        assert_eq!(LearningRate::new(1.0, Schedule::Linear, 0, 4).at(9), 0.0);
    }
}
