//! A whole job file, judged at once.

use std::{fs, path::Path};

use super::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

const GOOD: &str = "base: ./base\ndata: {train: games/train.jsonl, eval: games/validation.jsonl}\n";

fn errors(text: &str, dir: &Path) -> Vec<String> {
    job_file(text, dir).errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_job_has_a_summary() {
    let report = job_file(&format!("{GOOD}train: {{max_length: 256, global_batch: 16}}"), &examples());
    assert_eq!((report.errors, report.notes), (vec![], Vec::<String>::new()));
    let summary = report.summary.unwrap();
    assert_eq!(summary.targets.len(), 42);
    assert_eq!(summary.eval.as_ref().unwrap().labelled_tokens, 8291);
    let parameters = 6 * 16 * (512 + 384 + 384 + 512 + 3 * 960);
    assert_eq!(summary.plan.trainable_parameters, parameters);
    assert_eq!(summary.plan.reduced_bytes, 8 * parameters);
    assert_eq!(summary.plan.bytes_sent_per_step(1), 0);
    assert_eq!(summary.plan.bytes_sent_per_step(2), 8 * parameters);
    assert_eq!(summary.plan.total_steps, (3u64 * 672).div_ceil(16));
    let text = summary.to_string();
    assert!(text.contains("5,475,584 parameters") && text.contains("8,291 of them labelled"), "{text}");
}

#[test]
fn everything_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    for name in crate::base::base_files(&examples().join("base")).unwrap() {
        fs::copy(examples().join("base").join(&name), dir.path().join("base").join(&name)).unwrap();
    }
    fs::write(dir.path().join("t.jsonl"), "{oops\n{}\n").unwrap();
    let text = "base: base\ndata: {train: t.jsonl, eval: nowhere.jsonl}\n\
                adapter: {rank: 300, targets: [q_proj, x_proj]}\n\
                train: {max_length: 1000, lr: 0}\nworkers: {min: 3, max: 2}\nevl: {}\n";
    let errors = errors(text, dir.path());
    for wanted in [
        "evl: is not a field",
        "train.lr: is 0",
        "workers.min: is 3",
        "adapter.targets: \"x_proj\" matches no linear layer",
        "adapter.rank: is 300, larger than the smaller side",
        "train.max_length: is 1000, longer than the 512 positions",
        "data.train: line 1 is not JSON",
        "data.train: line 2 has the fields of no format",
        "data.eval: ",
    ] {
        assert_eq!(
            errors.iter().filter(|error| error.starts_with(wanted)).count(),
            1,
            "{wanted} in {errors:#?}"
        );
    }
    assert_eq!(errors.len(), 9, "{errors:#?}");
}

#[test]
fn a_broken_base_does_not_hide_bad_data() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    fs::write(dir.path().join("base/config.json"), r#"{"architectures": ["MambaForCausalLM"]}"#).unwrap();
    fs::write(dir.path().join("t.jsonl"), "3\n").unwrap();
    let errors = errors("base: base\ndata: {train: t.jsonl}", dir.path());
    assert_eq!(errors.len(), 4, "{errors:#?}");
    assert!(errors[0].contains("the architecture MambaForCausalLM is not known; known are llama"));
    assert!(errors[1].contains("model.safetensors is missing"));
    assert!(errors[2].contains("tokenizer.json: is missing"));
    assert!(errors[3].contains("data.train: line 1 is JSON, but no object"));
}

#[test]
fn a_base_that_is_not_there_is_told_once() {
    let errors = errors("base: nowhere\ndata: {train: games/train.jsonl}", &examples());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("base: ") && errors[0].contains("is not a folder"), "{errors:?}");
}

#[test]
fn what_lies_elsewhere_is_a_note() {
    let report = job_file("base: s3://bucket/base\ndata: {train: games/train.jsonl}", &examples());
    assert!(report.errors.is_empty() && report.summary.is_none());
    assert!(report.notes[0].contains("s3://bucket/base is not on this machine"));
}

#[test]
fn many_bad_lines_end_with_a_count() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.jsonl"), "x\n".repeat(50)).unwrap();
    let base = examples().join("base");
    let errors = errors(&format!("base: {}\ndata: {{train: t.jsonl}}", base.display()), dir.path());
    assert_eq!(errors.len(), 11, "{errors:?}");
}

#[test]
fn a_prompt_longer_than_the_positions_is_told() {
    let prompt = "word ".repeat(600);
    let errors = errors(&format!("{GOOD}eval: {{prompts: ['{prompt}']}}"), &examples());
    assert!(errors.len() == 1 && errors[0].starts_with("eval.prompts[0]: has "), "{errors:?}");
}
