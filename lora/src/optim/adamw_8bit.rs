//! AdamW whose moments are kept in 8 bits (arXiv:2110.02861), equal to bitsandbytes' `AdamW8bit`.
//!
//! A tensor's moments are cut into blocks of 256, each scaled by its largest magnitude and coded by a dynamic map:
//! 2.03 bytes a weight instead of 8. Tensors of fewer than 4096 values keep f32 moments, as in bitsandbytes.

use std::ops::Range;

use rayon::prelude::*;

use super::adamw::{Factors, Settings, adamw};
use super::dynamic_map::DynamicMap;
use super::state::{Buffer, Piece, State, StatePlan, written};
use super::sweep::{Elements, Rule, take};
use super::{Optimizer, Parameter, Update};
use crate::exact::CHUNK;

/// Values that share a scale.
const BLOCK: usize = 256;
/// Tensors below this many values keep f32 moments.
const MIN_LEN: usize = 4096;

/// AdamW with moments in 8 bits. Weights stay in f32.
#[derive(Clone, Debug)]
pub struct AdamW8bit {
    settings: Settings,
    cuts: Vec<Cut>,
    plan: StatePlan,
}

/// A piece of one tensor, whole blocks but at the tensor's end.
#[derive(Clone, Debug)]
struct Cut {
    place: Range<usize>,
    rule: Rule,
    /// In 8 bits; else the moments lie one after the other in the f32 buffers.
    narrow: bool,
}

/// A cut's slices: what is read and what is written.
struct Narrow<'a> {
    gradient: &'a [f32],
    weights: &'a [f32],
    codes: [&'a [u8]; 2],
    scales: [&'a [f32]; 2],
    new_weights: &'a mut [f32],
    new_codes: [&'a mut [u8]; 2],
    new_scales: [&'a mut [f32]; 2],
}

enum Work<'a> {
    Wide(Elements<'a, 2>),
    Narrow(Narrow<'a>),
}

impl AdamW8bit {
    /// AdamW over these tensors.
    pub fn new(settings: Settings, parameters: &[Parameter]) -> Self {
        let cuts = |parameter: &Parameter| {
            let narrow = parameter.place.len() >= MIN_LEN;
            let rule = Rule { lr: parameter.lr, weight_decay: parameter.weight_decay };
            let end = parameter.place.end;
            let starts = parameter.place.clone().step_by(CHUNK);
            starts.map(move |start| Cut { place: start..end.min(start + CHUNK), rule, narrow })
        };
        Self { settings, cuts: parameters.iter().flat_map(cuts).collect(), plan: plan(parameters) }
    }

    /// All cuts with their slices of the buffers.
    fn work<'a>(&self, gradient: &'a [f32], from: &'a State, to: &'a mut State) -> Vec<(Rule, Work<'a>)> {
        let [m, v, m_scales, v_scales]: [&[f32]; 4] = from.floats();
        let codes = [from.codes[0].as_slice(), from.codes[1].as_slice()];
        let [mut m_to, mut v_to, mut m_scales_to, mut v_scales_to] = written(&mut to.floats);
        let mut codes_to: [&mut [u8]; 2] = written(&mut to.codes);
        let mut weights_to = to.weights.as_mut_slice();
        let (mut wide, mut block) = (0, 0);
        let work = |cut: &Cut| {
            let (place, len) = (cut.place.clone(), cut.place.len());
            let (gradient, weights) = (&gradient[place.clone()], &from.weights[place.clone()]);
            let new_weights = take(&mut weights_to, len);
            let new_codes = codes_to.each_mut().map(|codes| take(codes, len));
            let work = if cut.narrow {
                let blocks = block..block + len.div_ceil(BLOCK);
                block = blocks.end;
                Work::Narrow(Narrow {
                    gradient,
                    weights,
                    codes: codes.map(|codes| &codes[place.clone()]),
                    scales: [m_scales, v_scales].map(|scales| &scales[blocks.clone()]),
                    new_weights,
                    new_codes,
                    new_scales: [take(&mut m_scales_to, blocks.len()), take(&mut v_scales_to, blocks.len())],
                })
            } else {
                let at = wide..wide + len;
                wide = at.end;
                new_codes.into_iter().for_each(|codes| codes.fill(0));
                Work::Wide(Elements {
                    gradient,
                    weights,
                    moments: [&m[at.clone()], &v[at]],
                    new_weights,
                    new_moments: [take(&mut m_to, len), take(&mut v_to, len)],
                })
            };
            (cut.rule, work)
        };
        self.cuts.iter().map(work).collect()
    }
}

/// Codes lie where the weights do; f32 moments and scales one after the other, in the order of the tensors.
fn plan(parameters: &[Parameter]) -> StatePlan {
    let (mut wide, mut scales, mut codes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut wide_len, mut blocks) = (0, 0);
    for parameter in parameters {
        let (key, shape, len) = (&parameter.key, &parameter.shape, parameter.place.len());
        let piece = |shape: &[usize], place| Piece { key: key.clone(), shape: shape.to_vec(), place };
        if len >= MIN_LEN {
            let place = blocks..blocks + len.div_ceil(BLOCK);
            blocks = place.end;
            codes.push(piece(shape, parameter.place.clone()));
            scales.push(piece(&[place.len()], place));
        } else {
            let place = wide_len..wide_len + len;
            wide_len = place.end;
            wide.push(piece(shape, place));
        }
    }
    let len = parameters.last().map_or(0, |last| last.place.end);
    let buffer = |name, len, pieces: &Vec<Piece>| Buffer { name, len, pieces: pieces.clone() };
    StatePlan {
        floats: vec![
            buffer("exp_avg", wide_len, &wide),
            buffer("exp_avg_sq", wide_len, &wide),
            buffer("exp_avg_absmax", blocks, &scales),
            buffer("exp_avg_sq_absmax", blocks, &scales),
        ],
        codes: vec![buffer("exp_avg", len, &codes), buffer("exp_avg_sq", len, &codes)],
    }
}

impl Optimizer for AdamW8bit {
    fn plan(&self) -> &StatePlan {
        &self.plan
    }

    fn step(&self, update: Update, gradient: &[f32], from: &State, to: &mut State) -> bool {
        to.step = from.step + 1;
        self.work(gradient, from, to)
            .into_par_iter()
            .map(|(rule, work)| {
                let factors = self.settings.factors(update, rule);
                match work {
                    Work::Wide(elements) => adamw(&factors, elements),
                    Work::Narrow(narrow) => narrow.update(&factors),
                }
            })
            .reduce(|| true, |a, b| a & b)
    }
}

impl Narrow<'_> {
    fn update(self, f: &Factors) -> bool {
        let Self { gradient, weights, codes, scales, new_weights, new_codes, new_scales } = self;
        let [m_codes, v_codes] = codes;
        let [m_codes_to, v_codes_to] = new_codes;
        let [m_scales_to, v_scales_to] = new_scales;
        let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut finite = true;
        for (block, start) in (0..gradient.len()).step_by(BLOCK).enumerate() {
            let at = start..gradient.len().min(start + BLOCK);
            let (m, v) = (&mut m[..at.len()], &mut v[..at.len()]);
            decode(DynamicMap::signed(), &m_codes[at.clone()], scales[0][block], m);
            decode(DynamicMap::unsigned(), &v_codes[at.clone()], scales[1][block], v);
            finite &= adamw_block(
                f,
                &gradient[at.clone()],
                &weights[at.clone()],
                m,
                v,
                &mut new_weights[at.clone()],
            );
            m_scales_to[block] = encode(DynamicMap::signed(), m, &mut m_codes_to[at.clone()]);
            v_scales_to[block] = encode(DynamicMap::unsigned(), v, &mut v_codes_to[at]);
        }
        finite
    }
}

/// The update of one block, its moments decoded and changed in place, in bitsandbytes' order.
fn adamw_block(f: &Factors, g: &[f32], w: &[f32], m: &mut [f32], v: &mut [f32], w_to: &mut [f32]) -> bool {
    let len = g.len();
    let (w, m, v, w_to) = (&w[..len], &mut m[..len], &mut v[..len], &mut w_to[..len]);
    let mut finite = true;
    for i in 0..len {
        let g = g[i] * f.clip;
        m[i] = m[i] * f.beta1 + f.first * g;
        v[i] = v[i] * f.beta2 + f.second * g * g;
        let denominator = v[i].sqrt() / f.root + f.eps;
        w_to[i] = w[i] * f.decay - f.step_size * m[i] / denominator;
        finite &= w_to[i].is_finite();
    }
    finite
}

fn decode(map: &DynamicMap, codes: &[u8], scale: f32, to: &mut [f32]) {
    for (to, &code) in to.iter_mut().zip(codes) {
        *to = map.values[usize::from(code)] * scale;
    }
}

/// Codes of a block's values; returns their scale, the largest magnitude.
fn encode(map: &DynamicMap, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    // A block of zeros has the codes of 0.
    let divisor = if scale == 0.0 { 1.0 } else { scale };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.code(value / divisor);
    }
    scale
}
