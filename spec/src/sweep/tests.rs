//! Tests of sweeps: what is made of a grid and of a search, and what is refused.

use lorafleet_proto::v1 as pb;
use proptest::prelude::*;

use super::*;

const JOB: &str = "name: games\nbase: ./base\ndata: {train: t.jsonl, eval: e.jsonl}\neval: {every: 10}\n";

fn sweep(section: &str) -> Result<Sweep, Vec<String>> {
    let text = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let file = parse_sweep(&format!("{JOB}sweep: {section}\n")).map_err(text)?;
    expand(&file.spec, &file.sweep).map_err(text)
}

fn described(section: &str) -> Vec<String> {
    sweep(section).expect("a sweep").children.iter().map(Child::describe).collect()
}

fn refused(section: &str) -> String {
    sweep(section).expect_err("refused").join("\n")
}

#[test]
fn a_grid_is_every_combination() {
    let all = described("{parameters: {adapter.rank: [8, 16], train.seed: {range: [0, 2]}}}");
    assert_eq!(all.len(), 6);
    assert_eq!(all[0], "adapter.rank=8, train.seed=0");
    assert_eq!(all[1], "adapter.rank=8, train.seed=1");
    assert_eq!(all[5], "adapter.rank=16, train.seed=2");
    let sweep = sweep("{parameters: {adapter.targets: [[q_proj, v_proj], all-linear]}}").unwrap();
    let targets = |i: usize| sweep.children[i].spec.adapter.clone().unwrap().targets;
    assert_eq!(
        (targets(0), targets(1)),
        (vec!["q_proj".into(), "v_proj".into()], vec!["all-linear".to_owned()])
    );
    assert_eq!(sweep.children[1].spec.display_name, "games-2");
    assert_eq!(
        described("{parameters: {train.seed: {range: [1, 9, 4]}}}"),
        ["train.seed=1", "train.seed=5", "train.seed=9"]
    );
}

/// Golden: another draw would give another sweep from the same file.
#[test]
fn the_same_file_gives_the_same_children() {
    let section = "{samples: 3, seed: 1, parameters: {train.lr: {log_uniform: [1e-5, 1e-3]}, adapter.rank: [4, 8, 16]}}";
    assert_eq!(described(section), GOLDEN);
    // A parameter's draws do not depend on the others'.
    let alone = described("{samples: 3, seed: 1, parameters: {train.lr: {log_uniform: [1e-5, 1e-3]}}}");
    assert!(GOLDEN.iter().zip(alone).all(|(both, alone)| both.ends_with(&alone)));
}

const GOLDEN: [&str; 3] = [
    "adapter.rank=4, train.lr=0.00004076",
    "adapter.rank=4, train.lr=0.00002698",
    "adapter.rank=4, train.lr=0.0000225",
];

#[test]
fn draws_are_spread_over_their_choices() {
    let section = "{samples: 600, seed: 3, parameters: {train.lr: {log_uniform: [1e-5, 1e-3]}, adapter.rank: [4, 8, 16]}}";
    let children = sweep(section).unwrap().children;
    let low = children.iter().filter(|child| child.spec.train.unwrap().lr < 1e-4).count();
    assert!((240..=360).contains(&low), "half of the logarithms are in the lower half: {low}");
    for rank in [4, 8, 16] {
        let count = children.iter().filter(|c| c.spec.adapter.as_ref().unwrap().rank == rank).count();
        assert!((140..=260).contains(&count), "{rank}: {count}");
    }
}

#[test]
fn a_sweep_of_a_million_children_is_refused_by_arithmetic() {
    let error = refused(
        "{parameters: {train.seed: {range: [1, 1000]}, train.weight_decay: [0, 0.1], adapter.rank: {range: [1, 500]}}}",
    );
    assert!(error.contains("would make 1000000 children (500 × 1000 × 2); a sweep may have 1000"), "{error}");
    let error = refused(
        "{parameters: {train.seed: {range: [0, 9223372036854775807]}, adapter.rank: {range: [1, 4000000000]}}}",
    );
    assert!(error.contains("a sweep may have 1000"), "{error}");
    let error = refused("{samples: 1000000, parameters: {train.lr: {uniform: [0.1, 0.2]}}}");
    assert_eq!(error, "sweep.samples: is 1000000; a sweep may have 1000 children");
}

#[test]
fn mistakes_name_the_parameter() {
    for (section, expected) in [
        ("{parameters: {}}", "sweep.parameters: is empty"),
        (
            "{parameters: {adapter.rnk: [8]}}",
            "sweep.parameters.adapter.rnk: is not a field of `adapter`; did you mean `rank`?",
        ),
        (
            "{parameters: {adapter.rank: [8, x]}}",
            "sweep.parameters.adapter.rank: \"x\": must be a whole number",
        ),
        ("{parameters: {adapter.rank: [8, 8]}}", "lists 8 twice"),
        ("{parameters: {adapter.rank: []}}", "is an empty list"),
        ("{parameters: {adapter.rank: 8}}", "must be a list of values"),
        ("{parameters: {base: [./a, ./b]}}", "children share the base"),
        ("{parameters: {data.train: [a.jsonl]}}", "children share the data"),
        ("{parameters: {train.lr: {uniform: [1e-5, 1e-3]}}}", "is a span"),
        ("{samples: 2, parameters: {train.lr: {log_uniform: [0, 1]}}}", "begins above 0"),
        (
            "{samples: 2, parameters: {train.lr: {uniform: [2, 1]}}}",
            "the second number must be above the first",
        ),
        ("{samples: 2, parameters: {adapter.rank: {uniform: [4, 9]}}}", "it must be a whole number"),
        ("{samples: 5, parameters: {adapter.rank: [4, 8]}}", "there are only 2 combinations"),
        ("{parameters: {train.steps: [5], train.epochs: [1]}}", "is given beside `train.epochs`"),
        ("{parameter: {adapter.rank: [4, 8]}}", "did you mean `parameters`?"),
        ("{adapter.rank: [4, 8]}", "fields of the job stand in `sweep.parameters`"),
        ("{parameters: {train.seed: {range: [5, 1]}}}", "the last number is below the first"),
    ] {
        let error = refused(section);
        assert!(error.contains(expected), "{section}: {error}");
    }
}

#[test]
fn a_child_that_is_no_job_is_named_by_its_parameters() {
    let error = refused("{parameters: {adapter.dropout: [0.1, 2], train.seed: {range: [0, 2]}}}");
    assert!(error.starts_with("adapter.dropout: "), "{error}");
    assert!(error.ends_with("(child 4: adapter.dropout=2, train.seed=0; and 2 more)"), "{error}");
}

#[test]
fn halving_needs_evaluations_at_its_rungs() {
    let rungs = |halving: &str| {
        sweep(&format!("{{parameters: {{train.seed: {{range: [1, 8]}}}}, halving: {halving}}}"))
            .map(|sweep| sweep.rungs.unwrap())
    };
    assert_eq!(rungs("{every: 2 evaluations}").unwrap(), Rungs { steps: 20, keep: 0.5, min_children: 1 });
    assert_eq!(
        rungs("{every: 30 steps, keep: 0.25, min_children: 2}").unwrap(),
        Rungs { steps: 30, keep: 0.25, min_children: 2 }
    );
    assert_eq!(rungs("{every: 1}").unwrap().steps, 10);
    for (halving, expected) in [
        ("{every: 15 steps}", "evaluations are made every 10: give a multiple of eval.every"),
        ("{every: 2 weeks}", "must be like `1 evaluations` or `100 steps`"),
        ("{every: 1, keep: 1}", "above 0 and below 1"),
        ("{every: 1, min_children: 8}", "is 8 of 8 children"),
        ("{evry: 1}", "did you mean `every`?"),
    ] {
        let error = rungs(halving).unwrap_err().join("\n");
        assert!(error.contains(expected), "{halving}: {error}");
    }
    let error = refused("{parameters: {train.steps: [5, 10]}, halving: {every: 1}}");
    assert!(error.contains("first rung at step 10, where every child has ended"), "{error}");
    let error = refused("{parameters: {eval.every: [5, 10]}, halving: {every: 1}}");
    assert!(error.contains("eval.every differs between children"), "{error}");
}

#[test]
fn names_stay_names() {
    assert_eq!(child_name("games", 7, 100), "games-007");
    assert_eq!(child_name(&"x".repeat(63), 7, 9).len(), 63);
    assert_eq!(child_name("é".repeat(40).as_str(), 7, 9).chars().last(), Some('7'));
}

proptest! {
    /// Whatever the seed: children that differ, each in its span, and the same again.
    #[test]
    fn drawn_children_differ_and_stay_in_their_spans(seed: u64, samples in 1u32..40) {
        let parameter = |path: &str, choices| pb::SweepParameter { path: path.into(), choices: Some(choices) };
        let spec = parse_sweep(&format!("{JOB}sweep: {{}}\n")).unwrap().spec;
        let sweep = pb::SweepSpec {
            parameters: vec![
                parameter("train.lr", pb::sweep_parameter::Choices::LogUniform(pb::SweepSpan { low: 1e-5, high: 1e-3 })),
                parameter("adapter.rank", pb::sweep_parameter::Choices::Range(pb::SweepRange { first: 2, last: 9, step: 0 })),
            ],
            samples,
            seed,
            halving: None,
        };
        let children = expand(&spec, &sweep).unwrap().children;
        prop_assert_eq!(children.len(), samples as usize);
        let distinct: HashSet<String> = children.iter().map(Child::describe).collect();
        prop_assert_eq!(distinct.len(), children.len());
        for child in &children {
            let (lr, rank) = (child.spec.train.unwrap().lr, child.spec.adapter.as_ref().unwrap().rank);
            prop_assert!((1e-5..=1e-3).contains(&lr) && (2..=9).contains(&rank), "{} {}", lr, rank);
        }
        prop_assert_eq!(expand(&spec, &sweep).unwrap().children, children);
    }

    /// Also when every combination there is has to be drawn.
    #[test]
    fn all_combinations_can_be_drawn(seed: u64, ranks in 1i64..12) {
        let file = parse_sweep(&format!(
            "{JOB}sweep: {{samples: {ranks}, seed: {seed}, parameters: {{adapter.rank: {{range: [1, {ranks}]}}}}}}"
        )).unwrap();
        prop_assert_eq!(expand(&file.spec, &file.sweep).unwrap().children.len(), ranks as usize);
    }
}
