//! What goes wrong is said, and leaves the current state whole.

use lorafleet_lora::{TrainError, Trainer};
use lorafleet_spec::data::Example;

use crate::fixtures::{base, examples, job};

#[test]
fn a_damaged_checkpoint_changes_nothing() {
    let mut trainer = Trainer::new(base(), &job("steps: 10", "rank: 8"), 10, 0).unwrap();
    let (before, hash) = (trainer.snapshot(), trainer.state_hash());
    let mut torn = before.files.clone();
    torn.get_mut("optimizer.safetensors").unwrap().truncate(1000);
    assert!(trainer.restore(&torn).unwrap_err().to_string().contains("optimizer.safetensors"));
    torn.remove("optimizer.safetensors");
    assert!(trainer.restore(&torn).unwrap_err().to_string().contains("no optimizer.safetensors"));
    let other = Trainer::new(base(), &job("steps: 1", "rank: 4"), 1, 0).unwrap();
    assert!(trainer.restore(&other.snapshot().files).unwrap_err().to_string().contains("another adapter"));
    assert_eq!((trainer.snapshot(), trainer.state_hash()), (before, hash));
}

#[test]
fn a_loss_that_explodes_stops_the_job() {
    let data = examples("train.jsonl", 4, 64);
    let job = job("steps: 10, lr: 1e30, schedule: constant, warmup: 0", "rank: 4");
    let mut trainer = Trainer::new(base(), &job, 10, 0).unwrap();
    let mut run = || -> Result<(), TrainError> {
        for _ in 0..3 {
            trainer.micro_batch(&[&data[0]])?;
            trainer.finish_step()?;
        }
        Ok(())
    };
    let message = run().unwrap_err().to_string();
    assert!(message.contains("Lower train.lr"), "{message}");
    let weights = trainer.adapter().weights;
    assert!(weights.iter().all(|weight| weight.is_finite()), "the current state is whole");
}

#[test]
fn a_step_without_labels_is_refused() {
    let mut trainer = Trainer::new(base(), &job("steps: 10", "rank: 4"), 10, 0).unwrap();
    let example = Example::causal(vec![5, 6, 7], vec![false; 3]);
    trainer.micro_batch(&[&example]).unwrap();
    let error = trainer.finish_step().unwrap_err();
    assert!(matches!(error, TrainError::NoLabels { step: 1, tokens: 3 }), "{error}");
    assert_eq!(trainer.step(), 0);
}

#[test]
fn no_step_follows_the_last() {
    let data = examples("train.jsonl", 2, 64);
    let mut trainer = Trainer::new(base(), &job("steps: 1", "rank: 4"), 1, 0).unwrap();
    trainer.micro_batch(&[&data[0]]).unwrap();
    assert_eq!(trainer.finish_step().unwrap().step, 1);
    assert!(matches!(trainer.micro_batch(&[&data[0]]), Err(TrainError::Done { total_steps: 1 })));
    assert!(matches!(trainer.finish_step(), Err(TrainError::Done { total_steps: 1 })));
}

#[test]
fn what_does_not_fit_the_base_is_refused() {
    let mut trainer = Trainer::new(base(), &job("steps: 1", "rank: 4"), 1, 0).unwrap();
    let long = Example::causal(vec![5; 514], [vec![false], vec![true; 513]].concat());
    assert!(trainer.micro_batch(&[&long]).unwrap_err().to_string().contains("max_length"));
    let foreign = Example::causal(vec![5, 1 << 20, 5], vec![false, false, true]);
    assert!(trainer.micro_batch(&[&foreign]).unwrap_err().to_string().contains("vocabulary"));
    let too_large = Trainer::new(base(), &job("steps: 1", "rank: 4096"), 1, 0);
    let message = too_large.err().unwrap().to_string();
    assert!(message.contains("adapter.rank") && message.contains("smaller side"), "{message}");
}
