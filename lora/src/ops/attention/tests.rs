//! Attention against its definition and finite differences, with every mask, at 1, 2 and 3 threads.

use candle_core::Tensor;

use super::backward::{self, Saved};
use super::mask::{Heads, Mask, Span};
use crate::ops::matrix;
use crate::ops::tests::{check_gradient, close, noise, same_on_threads, scoped, values, weigh};

const HEADS: Heads = Heads { heads: 6, kv_heads: 2, head_dim: 10, scale: 0.4 };

const MASKS: [Mask; 5] = [
    Mask::CAUSAL,
    Mask::ALL,
    Mask { window: Some(5), ..Mask::CAUSAL },
    Mask { window: Some(29), softcap: Some(0.7), ..Mask::CAUSAL },
    Mask { softcap: Some(0.5), ..Mask::ALL },
];

fn spans(lengths: &[usize]) -> Vec<Span> {
    let mut at = 0;
    let span = |&n: &usize| {
        at += n;
        Span { queries: at - n..at, keys: at - n..at }
    };
    lengths.iter().map(span).collect()
}

fn tensor(x: &[f32], columns: usize) -> Tensor {
    matrix(x.to_vec(), columns).unwrap()
}

/// Attention by the definition, in f64.
fn plain(q: &[f32], k: &[f32], v: &[f32], spans: &[Span], mask: Mask) -> Vec<f32> {
    let (d, qc, kc) = (HEADS.head_dim, HEADS.q_columns(), HEADS.kv_columns());
    let mut out = vec![0.0; q.len()];
    for (span, head) in spans.iter().flat_map(|s| (0..HEADS.heads).map(move |h| (s, h))) {
        let kv = head / HEADS.group() * d;
        for (i, token) in span.queries.clone().enumerate() {
            let score = |key: usize| {
                let dot =
                    (0..d).map(|x| f64::from(q[token * qc + head * d + x]) * f64::from(k[key * kc + kv + x]));
                let score = dot.sum::<f64>() * f64::from(HEADS.scale);
                mask.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
            };
            let seen = span.visible(i, mask);
            let keys: Vec<(usize, f64)> =
                seen.map(|key| span.keys.start + key).map(|key| (key, score(key))).collect();
            let sum: f64 = keys.iter().map(|(_, p)| p).sum();
            for x in 0..d {
                let value: f64 = keys.iter().map(|(key, p)| p * f64::from(v[key * kc + kv + x])).sum();
                out[token * qc + head * d + x] = (value / sum) as f32;
            }
        }
    }
    out
}

fn forward(q: &[f32], k: &[f32], v: &[f32], spans: &[Span], mask: Mask) -> Vec<f32> {
    let (q, k, v) = (tensor(q, 60), tensor(k, 20), tensor(v, 20));
    scoped(|scope| values(&super::forward(&q, &k, &v, spans, HEADS, mask, scope).unwrap().0))
}

/// Gradients of q, k and v, one after the other.
fn gradients(q: &[f32], k: &[f32], v: &[f32], dy: &[f32], spans: &[Span], mask: Mask) -> Vec<f32> {
    let (q, k, v) = (tensor(q, 60), tensor(k, 20), tensor(v, 20));
    scoped(|scope| {
        let (out, stats) = super::forward(&q, &k, &v, spans, HEADS, mask, scope).unwrap();
        let saved = Saved { q: &q, k: &k, v: &v, out: &out, stats: &stats };
        let g = backward::backward(&saved, &tensor(dy, 60), spans, HEADS, mask, scope).unwrap();
        [values(&g.dq), values(&g.dk), values(&g.dv)].concat()
    })
}

#[test]
fn every_mask_by_finite_differences() {
    let spans = spans(&[1, 53, 7, 30]);
    let tokens = 91;
    let (q, k, v) = (noise(tokens * 60, 17), noise(tokens * 20, 18), noise(tokens * 20, 19));
    let dy = noise(tokens * 60, 20);
    for mask in MASKS {
        let out = same_on_threads(|| forward(&q, &k, &v, &spans, mask));
        close(&out, &plain(&q, &k, &v, &spans, mask), 1e-5);
        let all = same_on_threads(|| gradients(&q, &k, &v, &dy, &spans, mask));
        let (dq, rest) = all.split_at(tokens * 60);
        let (dk, dv) = rest.split_at(tokens * 20);
        check_gradient("q", &q, dq, |q| weigh(&plain(q, &k, &v, &spans, mask), &dy));
        check_gradient("k", &k, dk, |k| weigh(&plain(&q, k, &v, &spans, mask), &dy));
        check_gradient("v", &v, dv, |v| weigh(&plain(&q, &k, v, &spans, mask), &dy));
    }
}

/// A sequence so long that its heads and queries are cut into several units.
#[test]
fn a_long_sequence_by_finite_differences() {
    let spans = spans(&[3, 420]);
    let tokens = 423;
    let (q, k, v) = (noise(tokens * 60, 27), noise(tokens * 20, 28), noise(tokens * 20, 29));
    let mut dy = vec![0.0; tokens * 60];
    for row in [4, 100, 422] {
        dy[row * 60..][..60].copy_from_slice(&noise(60, row as u64));
    }
    for mask in [Mask::CAUSAL, Mask { window: Some(70), ..Mask::CAUSAL }, Mask::ALL] {
        close(&forward(&q, &k, &v, &spans, mask), &plain(&q, &k, &v, &spans, mask), 1e-5);
        let all = same_on_threads(|| gradients(&q, &k, &v, &dy, &spans, mask));
        // Three rows carry all of the loss: only they are computed.
        let loss = |q: &[f32], k: &[f32], v: &[f32]| {
            let rows = [4usize, 100, 422].map(|row| {
                let place = row - 3;
                let one = Span { queries: row..row + 1, keys: 3..tokens };
                let seen = spans[1].visible(place, mask);
                let keys = 3 + seen.start..3 + seen.end;
                let y = plain_row(q, k, v, &one, keys);
                weigh(&y, &dy[row * 60..][..60])
            });
            rows.iter().sum::<f64>()
        };
        let (dq, rest) = all.split_at(tokens * 60);
        let (dk, dv) = rest.split_at(tokens * 20);
        let row = 100 * 60..101 * 60;
        check_gradient("q", &q[row.clone()], &dq[row.clone()], |part| {
            let mut q = q.clone();
            q[row.clone()].copy_from_slice(part);
            loss(&q, &k, &v)
        });
        check_gradient("k", &k, dk, |k| loss(&q, k, &v));
        check_gradient("v", &v, dv, |v| loss(&q, &k, v));
    }
}

/// One query over given keys, by the definition.
fn plain_row(q: &[f32], k: &[f32], v: &[f32], query: &Span, keys: std::ops::Range<usize>) -> Vec<f32> {
    let at = query.queries.start;
    let one = Span { queries: 0..1, keys: 0..keys.len() };
    let part = keys.start * 20..keys.end * 20;
    plain(&q[at * 60..][..60], &k[part.clone()], &v[part], &[one], Mask::ALL)
}

#[test]
fn attention_with_earlier_keys() {
    let (q, k, v) = (noise(3 * 60, 21), noise(20 * 20, 22), noise(20 * 20, 23));
    let span = [Span { queries: 0..3, keys: 0..20 }];
    for mask in MASKS {
        close(&forward(&q, &k, &v, &span, mask), &plain(&q, &k, &v, &span, mask), 1e-5);
    }
}

#[test]
fn a_token_does_not_depend_on_those_that_follow() {
    let (q, k, v) = (noise(70 * 60, 31), noise(70 * 20, 32), noise(70 * 20, 33));
    for mask in MASKS.into_iter().filter(|mask| mask.causal) {
        let whole = forward(&q, &k, &v, &spans(&[70]), mask);
        for len in [1, 6, 23, 64] {
            let part = forward(&q[..len * 60], &k[..len * 20], &v[..len * 20], &spans(&[len]), mask);
            assert_eq!(part, whole[..len * 60], "{len} tokens, {mask:?}");
        }
    }
}

/// Sums over keys end and go on at the same keys, however many follow.
#[test]
fn nor_does_one_of_a_very_long_sequence() {
    let (q, k, v) = (noise(2200 * 60, 34), noise(2200 * 20, 35), noise(2200 * 20, 36));
    let whole = forward(&q, &k, &v, &spans(&[2200]), Mask::CAUSAL);
    for len in [1025, 2100] {
        let part = forward(&q[..len * 60], &k[..len * 20], &v[..len * 20], &spans(&[len]), Mask::CAUSAL);
        assert_eq!(part, whole[..len * 60], "{len} tokens");
    }
    let last = Span { queries: 2199..2200, keys: 0..2200 };
    close(&whole[2199 * 60..], &plain_row(&q, &k, &v, &last, 0..2200), 1e-5);
}
