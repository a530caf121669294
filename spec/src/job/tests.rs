//! Job files read, completed and refused.

use lorafleet_proto::v1::train_spec::Length as PbLength;
use proptest::prelude::*;

use super::*;

const SMALL: &str = "base: ./base\ndata: {train: t.jsonl}\n";

/// Errors of a job file with base and data, and `more`, as text.
fn errors(more: &str) -> Vec<String> {
    match parse_yaml(&format!("{SMALL}{more}")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn job(more: &str) -> Job {
    Job::try_from(&parse_yaml(&format!("{SMALL}{more}")).unwrap()).unwrap()
}

#[test]
fn base_and_data_are_enough() {
    let job = job("");
    assert_eq!(job.base, Source { source: "./base".into(), sha256: None });
    assert_eq!((job.adapter.rank, job.adapter.alpha), (16, 32.0));
    assert_eq!(job.adapter.targets, TargetRule::AllLinear);
    assert_eq!(job.train.length, Length::Epochs(3.0));
    assert_eq!((job.train.global_batch, job.train.micro_batches, job.train.max_length), (16, 8, 512));
    assert_eq!((job.train.lr, job.train.warmup, job.train.clip), (1e-3, 0.03, 1.0));
    assert_eq!((job.train.beta1, job.train.beta2, job.train.eps), (0.9, 0.999, 1e-8));
    assert_eq!((job.train.schedule, job.train.reduce), (Schedule::Cosine, Reduce::Exact));
    assert_eq!((job.eval.every, job.checkpoint.every, job.checkpoint.keep), (50, 50, 3));
    assert_eq!(job.workers, WorkersSpec { min: 1, max: 4 });
    assert_eq!(job.missing_digests().len(), 2);
}

#[test]
fn the_design_s_job_file_is_read() {
    let text = r#"
name: games-style
base: ./base                    # a folder, a hub id, or a store URL
task: causal_lm                 # or classification
data: {train: train.jsonl, eval: validation.jsonl}
adapter: {method: lora, rank: 16, alpha: 32, targets: all-linear, dropout: 0.0}
train: {epochs: 3, global_batch: 16, max_length: 512, lr: 1e-3, schedule: cosine, warmup: 0.03, weight_decay: 0.0, clip: 1.0, seed: 0, precision: f32, reduce: exact}   # or steps: N
eval: {every: 50, prompts: ["Describe the Debian package …"]}
checkpoint: {every: 50, keep: 3}
workers: {min: 1, max: 4}
"#;
    let spec = parse_yaml(text).unwrap();
    assert_eq!(spec.display_name, "games-style");
    assert_eq!(spec.eval.unwrap().prompts, ["Describe the Debian package …"]);
}

#[test]
fn lists_patterns_and_digests_are_read() {
    let sha = "a".repeat(64);
    let text = format!(
        r#"
base: {{source: b, sha256: {sha}}}
data: {{train: t.jsonl}}
adapter:
  targets: [q_proj, v_proj]
  exclude: 'model\.layers\.0\..*'
  layers: 1
  rslora: true
  rank_pattern: {{down_proj: 6, 'layers\.1\..*v_proj': 8}}
  alpha_pattern: {{q_proj: 2}}
train: {{steps: 7, seed: 18446744073709551615, micro_tokens: 1024, clip: 0, warmup: 0}}
"#
    );
    let spec = parse_yaml(&text).unwrap();
    let job = Job::try_from(&spec).unwrap();
    assert_eq!(job.base.sha256, Some(sha));
    assert_eq!(job.adapter.targets, TargetRule::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(job.adapter.exclude, Some(TargetRule::Pattern(r"model\.layers\.0\..*".into())));
    assert_eq!(job.adapter.layers, [1]);
    assert_eq!(job.adapter.rank_pattern, [("down_proj".into(), 6), (r"layers\.1\..*v_proj".into(), 8)]);
    assert_eq!(job.adapter.alpha_pattern, [("q_proj".into(), 2.0)]);
    assert_eq!(job.train.length, Length::Steps(7));
    assert_eq!((job.train.seed, job.train.micro_tokens), (u64::MAX, Some(1024)));
    assert_eq!((job.train.clip, job.train.warmup), (0.0, 0.0));
}

#[test]
fn unknown_fields_name_the_nearest() {
    for (more, wanted) in [
        ("adaptor: {rank: 8}", "adaptor: is not a field of a job file; did you mean `adapter`?"),
        ("adapter: {rnak: 8}", "adapter.rnak: is not a field of `adapter`; did you mean `rank`?"),
        ("train: {learning_rate: 1}", "train.learning_rate: is not a field of `train`; its fields are steps"),
        ("train: {batch_size: 1}", "train.batch_size: is not a field of `train`"),
        ("train: {global_bath: 1}", "did you mean `global_batch`?"),
        ("rank: 8", "rank: is not a field of a job file; did you mean `adapter.rank`?"),
        (
            "train: {workers: 2}",
            "train.workers: is not a field of `train`; did you mean `workers` at the top",
        ),
        (
            "train: {dropout: 0.1}",
            "train.dropout: is not a field of `train`; did you mean `adapter.dropout`?",
        ),
    ] {
        let errors = errors(more);
        assert!(
            errors.len() == 1 && errors[0].starts_with(wanted) || errors[0].contains(wanted),
            "{more}: {errors:?}"
        );
    }
}

#[test]
fn each_bad_value_has_its_path_and_reason() {
    for (more, wanted) in [
        ("name: a b", "name: is \"a b\""),
        ("task: chess", "task: is `chess`; it must be `causal_lm` or `classification`"),
        ("adapter: {rank: 0}", "adapter.rank: is 0; it must be at least 1"),
        ("adapter: {rank: -1}", "adapter.rank: is -1; it must be a whole number, at least 1"),
        ("adapter: {rank: 2.5}", "adapter.rank: is 2.5; it must be a whole number"),
        ("adapter: {rank: many}", "adapter.rank: must be a whole number, at least 1, not a text"),
        ("adapter: {alpha: 0}", "adapter.alpha: is 0; it must be above 0"),
        ("adapter: {alpha: .nan}", "alpha"),
        ("adapter: {dropout: 1.1}", "adapter.dropout: is 1.1; it must be 0 or above, and below 1"),
        ("adapter: {method: lokr}", "adapter.method: is `lokr`; it must be `lora` or `dora` or `full`"),
        ("adapter: {targets: [q_proj, 3]}", "adapter.targets[1]: must be a text, not a number"),
        ("adapter: {targets: '(q_proj'}", "adapter.targets: \"(q_proj\" is no regular expression"),
        ("adapter: {targets: [all-linear, q_proj]}", "adapter.targets: has all-linear beside other entries"),
        ("adapter: {targets: ['.*q_proj', v_proj]}", "a regular expression stands alone"),
        ("adapter: {targets: '.*q_proj', layers: [0]}", "adapter.layers: cannot be combined"),
        ("adapter: {exclude: all-linear}", "adapter.exclude: is all-linear"),
        ("adapter: {layers: [a]}", "adapter.layers[0]: must be a layer's index"),
        ("adapter: {rank_pattern: {q_proj: 0}}", "adapter.rank_pattern.q_proj: is 0"),
        ("adapter: {rank_pattern: {'(': 1}}", "adapter.rank_pattern.(: \"(\" is no regular expression"),
        ("adapter: {alpha_pattern: {q_proj: -1}}", "adapter.alpha_pattern.q_proj: is -1; it must be above 0"),
        ("train: {steps: 5, epochs: 1}", "train.steps: is given beside `train.epochs`"),
        ("train: {steps: 0}", "train.steps: is 0; it must be at least 1"),
        ("train: {epochs: 0}", "train.epochs: is 0; it must be above 0"),
        ("train: {global_batch: 0}", "train.global_batch: is 0"),
        ("train: {micro_batches: 17}", "train.micro_batches: is 17, more than the 16 examples"),
        ("train: {micro_tokens: 100}", "train.micro_tokens: is 100, less than one example may have"),
        ("train: {max_length: 1}", "train.max_length: is 1; it must be at least 2"),
        ("train: {lr: 0}", "train.lr: is 0; it must be above 0"),
        ("train: {lr: fast}", "train.lr: must be a finite number, not a text"),
        ("train: {warmup: -1}", "train.warmup: is -1; it must be 0 or above"),
        ("train: {beta1: 1.0}", "train.beta1: is 1; it must be 0 or above, and below 1"),
        (
            "train: {schedule: sine}",
            "train.schedule: is `sine`; it must be `constant` or `linear` or `cosine` or `inverse_sqrt` or `wsd`",
        ),
        ("train: {precision: fp8}", "train.precision: is `fp8`; it must be `f32` or `bf16`"),
        ("train: {seed: -1}", "train.seed: is -1"),
        ("eval: {prompts: ['']}", "eval.prompts[0]: is empty"),
        ("checkpoint: {keep: 0}", "checkpoint.keep: is 0"),
        ("checkpoint: 5", "checkpoint: must be fields with values, not a number"),
        ("tenant: Team A", "tenant: is \"Team A\"; a tenant's name has 1 to 63"),
        ("priority: 1001", "priority: is 1001; it must be from -1000 to 1000"),
        (
            "checkpoint: {every: 4, keep_every: 6}",
            "checkpoint.keep_every: is 6; it must be a multiple of `checkpoint.every` (4)",
        ),
        ("workers: {min: 3, max: 2}", "workers.min: is 3, more than `workers.max` (2)"),
        ("workers: {max: 9}", "workers.max: is 9, more than the 8 micro-batches"),
    ] {
        let errors = errors(more);
        assert_eq!(errors.len(), 1, "{more}: {errors:?}");
        assert!(errors[0].contains(wanted), "{more}: {errors:?}");
    }
}

#[test]
fn all_errors_come_at_once() {
    let text = "bas: x\nadapter: {rank: 0, alpha: -1}\ntrain: {lr: 0, steps: x}\nworkers: {min: 9, max: 2}";
    let errors = parse_yaml(text).unwrap_err();
    let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
    for path in [
        "bas",
        "base",
        "data.train",
        "adapter.rank",
        "adapter.alpha",
        "train.lr",
        "train.steps",
        "workers.min",
    ] {
        assert_eq!(paths.iter().filter(|p| **p == path).count(), 1, "{path} in {paths:?}");
    }
    assert_eq!(paths.len(), 8, "{errors:?}");
}

#[test]
fn files_that_are_no_job_files_say_so() {
    for (text, wanted) in
        [("", "is empty"), ("- a", "holds a list"), ("a: [", "is not YAML"), ("base: a\nbase: b", "base")]
    {
        let errors = parse_yaml(text).unwrap_err();
        assert!(errors[0].to_string().contains(wanted), "{text}: {errors:?}");
    }
}

#[test]
fn an_absent_message_takes_its_defaults_and_a_present_one_its_zeros() {
    let source = |text: &str| vec![pb::DataRef { source: text.into(), ..Default::default() }];
    let mut spec = pb::JobSpec {
        base: Some(pb::BaseRef { source: "b".into(), ..Default::default() }),
        data: Some(pb::DataSpec { train: source("t"), ..Default::default() }),
        train: Some(pb::TrainSpec {
            length: Some(PbLength::Steps(3)),
            global_batch: 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    fill_defaults(&mut spec);
    let job = Job::try_from(&spec).unwrap();
    assert_eq!((job.train.lr, job.train.clip, job.train.warmup), (1e-3, 0.0, 0.0));
    assert_eq!((job.train.micro_batches, job.workers.max), (2, 2));
    spec.adapter = Some(pb::AdapterSpec::default());
    fill_defaults(&mut spec);
    let errors = Job::try_from(&spec).unwrap_err();
    assert_eq!(errors[0].path, "adapter.rank");
}

#[test]
fn an_empty_message_gives_every_error_without_a_panic() {
    let errors = Job::try_from(&pb::JobSpec::default()).unwrap_err();
    assert!(errors.len() > 10, "{errors:?}");
}

#[test]
fn steps_of_a_job() {
    assert_eq!(job("train: {steps: 42}").train.total_steps(10), 42);
    assert_eq!(job("train: {epochs: 3}").train.total_steps(16), 3);
    assert_eq!(job("train: {epochs: 3}").train.total_steps(17), 4);
    assert_eq!(job("train: {epochs: 1.1, global_batch: 11}").train.total_steps(10), 1);
    assert_eq!(job("train: {epochs: 0.001}").train.total_steps(10), 1);
    let train = job("train: {steps: 42, warmup: 0.03}").train;
    assert_eq!(train.warmup_steps(42), 2);
    assert_eq!(job("train: {steps: 42, warmup: 5}").train.warmup_steps(42), 5);
    assert_eq!(job("train: {steps: 42, warmup: 0}").train.warmup_steps(42), 0);
}

proptest! {
    #[test]
    fn filling_in_is_idempotent_and_a_read_job_stays_the_same(
        steps in 1u64..1000, batch in 1u32..64, rank in 1u32..64, seed: u64, max in 1u32..9,
    ) {
        let max = max.min(batch.min(8));
        let more = format!(
            "train: {{steps: {steps}, global_batch: {batch}, seed: {seed}}}\nadapter: {{rank: {rank}}}\nworkers: {{max: {max}}}"
        );
        let spec = parse_yaml(&format!("{SMALL}{more}")).unwrap();
        let mut again = spec.clone();
        fill_defaults(&mut again);
        prop_assert_eq!(&spec, &again);
        let job = Job::try_from(&spec).unwrap();
        prop_assert!(job.workers.max <= job.train.micro_batches && job.train.micro_batches <= job.train.global_batch);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = parse_yaml(&text);
    }
}

#[test]
fn an_adapter_is_evaluated_and_merged_by_its_name() {
    let evaluate = "name: e\naction: evaluate\nbase: ./base\nadapter: jobs/train\ndata: {eval: v.jsonl}\n";
    let job = Job::try_from(&parse_yaml(evaluate).unwrap()).unwrap();
    assert_eq!((job.action, job.adapter.start), (Action::Evaluate, Some(Start::Job("jobs/train".into()))));
    assert_eq!((job.workers, job.data.train.len()), (WorkersSpec { min: 1, max: 1 }, 0));
    let merge = "action: merge\nbase: ./base\nadapter: {start: ./adapter}\n";
    let job = Job::try_from(&parse_yaml(merge).unwrap()).unwrap();
    let folder = Source { source: "./adapter".into(), sha256: None };
    assert_eq!((job.action, &job.adapter.start), (Action::Merge, &Some(Start::Folder(folder))));
    let missing: Vec<String> = job.missing_digests().into_iter().map(|error| error.path).collect();
    assert_eq!(missing, ["base.sha256", "adapter.start.sha256"]);
    // A job that trains may begin with another's adapter, too.
    let train = "base: ./base\nadapter: {rank: 4, start: jobs/before}\ndata: {train: t.jsonl}\n";
    let job = Job::try_from(&parse_yaml(train).unwrap()).unwrap();
    assert_eq!((job.action, job.adapter.start), (Action::Train, Some(Start::Job("jobs/before".into()))));
}

#[test]
fn what_an_action_lacks_or_has_no_use_for_is_told() {
    let evaluate = "action: evaluate\nbase: b\nadapter: jobs/t\ndata: {eval: v}\n";
    for (yaml, wanted) in [
        ("action: chess\nbase: b\ndata: {train: t}", "action: is `chess`; it must be `train` or `evaluate`"),
        (
            "action: evaluate\nbase: b\ndata: {eval: v}",
            "adapter: is required for `action: evaluate`: jobs/NAME",
        ),
        ("action: evaluate\nbase: b\nadapter: jobs/t", "data.eval: is required"),
        (
            "action: merge\nbase: b\nadapter: jobs/t\ndata: {eval: v}",
            "data: means nothing to a merge; leave it out",
        ),
        (
            "action: merge\nbase: b\nadapter: jobs/t\nworkers: {max: 2}",
            "workers.max: is 2; `action: merge` takes one",
        ),
        ("action: merge\nbase: b\nadapter: {method: full}", "adapter.method: means nothing to a merge"),
        ("action: merge\nbase: b\nadapter: jobs/", "adapter.start: is \"jobs/\"; a job is named jobs/ID"),
        (&format!("{evaluate}checkpoint: {{every: 3}}"), "checkpoint: means nothing to an evaluation"),
        (
            &evaluate.replace("jobs/t", "{start: jobs/t, rank: 3}"),
            "adapter.rank: means nothing to an evaluation",
        ),
        (&evaluate.replace("eval: v", "eval: v, train: t"), "data.train: is not looked at by an evaluation"),
        (&format!("{evaluate}eval: {{prompts: [hi]}}"), "eval.prompts: are answered by jobs that train"),
    ] {
        let errors: Vec<String> = parse_yaml(yaml).unwrap_err().iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|error| error.starts_with(wanted)), "{yaml}: {errors:?}");
    }
}
