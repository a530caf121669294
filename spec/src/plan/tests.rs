//! Plans of jobs on the example's base and on tiny ones.

use std::path::Path;

use super::*;
use crate::base::{Head, tests::families::tiny};

const LOAD: Load = Load { examples: 100, tokens: 10_000, labelled: 6_000, longest: 200 };

fn example() -> BaseShape {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base");
    BaseShape::read(&dir, Head::LanguageModel).unwrap()
}

fn plan(shape: &BaseShape, sections: &str) -> Plan {
    let text = format!("base: b\ndata: {{train: t}}\n{sections}");
    let (mut spec, parts, errors) = crate::job::read_lenient(&text);
    // What may not be said yet is planned all the same.
    let recompute = spec.train.as_ref().is_some_and(|train| train.recompute);
    spec.adapter = None;
    spec.train.as_mut().unwrap().recompute = false;
    crate::fill_defaults(&mut spec);
    let mut job = Job::try_from(&spec).unwrap();
    job.adapter = parts.adapter.unwrap_or_else(|| panic!("{sections}: {errors:?}"));
    job.train.recompute = recompute;
    let targets = targets::resolve(&job.adapter, shape).unwrap();
    let saved = targets::saved(&job.adapter, shape).unwrap();
    Plan::of(&job, shape, &targets, &saved, LOAD)
}

/// Weights of the example's linear layers, without the head.
const WEIGHTS: f64 = 6.0 * (256.0 * (256.0 + 128.0 + 128.0 + 256.0) + 3.0 * 256.0 * 704.0);
const HEAD: f64 = 256.0 * 4096.0;
/// 100 tokens see 50.5 on average.
const ATTENTION: f64 = 4.0 * 50.5 * 256.0;

fn flops(plan: &Plan) -> f64 {
    plan.flops_per_step * 100.0 / 16.0
}

fn close(found: f64, wanted: f64) {
    assert!((found / wanted - 1.0).abs() < 1e-12, "{found} is not {wanted}");
}

#[test]
fn lora_takes_four_for_each_weight_and_six_for_each_of_its_own() {
    let plan = plan(&example(), "adapter: {rank: 8}");
    let own = plan.trainable_parameters as f64;
    let tokens = 10_000.0 * (4.0 * WEIGHTS + 6.0 * own + 3.0 * 6.0 * ATTENTION);
    close(flops(&plan), tokens + 4.0 * HEAD * 6_000.0);
    assert_eq!(plan.total_parameters, plan.base_parameters + plan.trainable_parameters);
}

#[test]
fn full_fine_tuning_takes_six_for_each_weight() {
    let plan = plan(&example(), "adapter: {method: full}");
    close(flops(&plan), 10_000.0 * (6.0 * WEIGHTS + 3.0 * 6.0 * ATTENTION) + 6.0 * HEAD * 6_000.0);
    assert_eq!(
        (plan.trainable_parameters, plan.total_parameters),
        (plan.base_parameters, plan.base_parameters)
    );
}

#[test]
fn below_the_lowest_adapter_there_is_no_backward_pass() {
    let top = plan(&example(), "adapter: {rank: 8, layers: [5]}");
    let own = top.trainable_parameters as f64;
    let layers = WEIGHTS * (2.0 * 5.0 + 4.0) / 6.0 + ATTENTION * (5.0 + 3.0);
    close(flops(&top), 10_000.0 * (layers + 6.0 * own) + 4.0 * HEAD * 6_000.0);
    let all = plan(&example(), "adapter: {rank: 8}");
    assert!(top.memory.activations < all.memory.activations);
    assert_eq!(top.memory.base, all.memory.base);
}

#[test]
fn recompute_trades_memory_for_work() {
    let kept = plan(&example(), "adapter: {rank: 8}");
    let again = plan(&example(), "adapter: {rank: 8}\ntrain: {recompute: true}");
    assert!(again.memory.activations < kept.memory.activations * 2 / 3, "{again:?}");
    close(flops(&again) - flops(&kept), 10_000.0 * (2.0 * WEIGHTS + 6.0 * ATTENTION));
}

#[test]
fn states_and_precision_have_their_sizes() {
    let bytes = |train: &str| {
        let plan = plan(&example(), &format!("adapter: {{rank: 8}}\ntrain: {{{train}}}"));
        plan.memory.adapter / plan.trainable_parameters
    };
    // Two states of weights and two moments, gradients, 64-bit sums.
    assert_eq!(bytes("optimizer: adamw"), 2 * 12 + 4 + 8);
    assert_eq!(bytes("reduce: f32"), 2 * 12 + 4 + 4);
    assert_eq!(bytes("optimizer: lion"), 2 * 8 + 4 + 8);
    assert_eq!(bytes("optimizer: adamw_8bit"), 2 * 7 + 4 + 8);
    assert_eq!(bytes("optimizer: sgd, momentum: 0.0"), 2 * 4 + 4 + 8);
    let f32 = plan(&example(), "train: {precision: f32}").memory.base;
    let bf16 = plan(&example(), "train: {precision: bf16}").memory.base;
    assert_eq!(f32, 4 * 5_475_584);
    let norms = 13 * 256;
    assert_eq!(bf16, 2 * (5_475_584 - norms) + 4 * norms);
}

#[test]
fn full_fine_tuning_needs_more_memory_than_lora() {
    let lora = plan(&example(), "adapter: {rank: 16}").memory;
    let full = plan(&example(), "adapter: {method: full}").memory;
    assert!(full.adapter > 10 * lora.adapter && full.total() > 2 * lora.total(), "{full:?} {lora:?}");
}

#[test]
fn classifiers_count_their_head_and_see_both_ways() {
    let bert = tiny("bert", "classifier", Head::Classifier { labels: 3 });
    let lora = plan(&bert, "adapter: {rank: 2, targets: [query, value]}");
    let head = 3 * 32 + 3;
    assert_eq!(lora.trainable_parameters, 2 * 2 * (32 + 32) + head);
    // Of the whole model: 1 block of 4 squares and an MLP of 48, attention to all 100 tokens; pooler and head once a text.
    let block = 4.0 * 32.0 * 32.0 + 2.0 * 32.0 * 48.0;
    let own = (2 * 2 * (32 + 32)) as f64;
    let tokens = 10_000.0 * (4.0 * block + 6.0 * own + 3.0 * 4.0 * 100.0 * 32.0);
    close(flops(&lora), tokens + 100.0 * (4.0 * 32.0 * 32.0 + 6.0 * 3.0 * 32.0));
}

#[test]
fn a_window_bounds_what_is_seen() {
    let mistral = tiny("mistral", "language_model", Head::LanguageModel);
    let mut wide = mistral.clone();
    wide.layer_kinds[0].window = None;
    let work = |shape| flops(&plan(shape, "adapter: {rank: 2}"));
    // The first 8 tokens see 1 to 8, the other 92 see 8: 7.72 instead of 50.5.
    close(work(&wide) - work(&mistral), 10_000.0 * 3.0 * 4.0 * (50.5 - 7.72) * 32.0);
}
