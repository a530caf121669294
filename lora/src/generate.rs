//! Generation: greedy or sampled continuations of a prompt, with a cache of keys and values and any adapter.

use rand_chacha::rand_core::Rng;

use crate::adapter::Adapter;
use crate::adapter::init::generator;
use crate::base::Base;
use crate::model::ModelError;

/// How to continue a prompt.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens of the continuation at most; it also ends where the base's positions do.
    pub max_new_tokens: usize,
    /// 0: always the likeliest token. Above: logits are divided by it before the softmax.
    pub temperature: f64,
    /// Only the likeliest tokens whose probabilities reach this sum are drawn from, in (0, 1]; 1: all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the continuation; they are not part of it.
    pub stop: Vec<u32>,
}

impl GenerateOptions {
    /// The likeliest token each time.
    pub fn greedy(max_new_tokens: usize, stop: Vec<u32>) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0, stop }
    }
}

/// Why nothing can be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt has no token")]
    EmptyPrompt,
    /// The prompt leaves no position for an answer.
    #[error(
        "the prompt has {tokens} tokens; the base has {positions} positions, and at least one is needed to answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the base.
        positions: usize,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Options(&'static str),
    /// The model's output is not a number.
    #[error("the model's logits are not finite at token {at}: the adapter or the base is damaged")]
    NotFinite {
        /// Place in the sequence.
        at: usize,
    },
    /// The model refused the tokens.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Continues `prompt`, and returns the new tokens without the one that stopped them.
///
/// The draws are counter-based: token n of the continuation depends on the seed, n and the logits only.
///
/// # Errors
/// When the prompt is empty or fills all positions, when an option is out of range, or the model fails.
pub fn generate(
    base: &Base,
    adapter: Option<&Adapter>,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<u32>, GenerateError> {
    let positions = base.shape().max_positions;
    check(prompt, positions, options)?;
    let view = adapter.map(Adapter::view);
    let room = options.max_new_tokens.min(positions - prompt.len());
    let mut session = base.model().session(view.as_ref(), prompt.len() + room)?;
    let mut sampler = Sampler::new(options);
    let mut continuation = Vec::new();
    let mut next = prompt.to_vec();
    while continuation.len() < room {
        let logits = session.append(&next)?;
        let at = prompt.len() + continuation.len();
        let token = sampler.choose(&logits, continuation.len()).ok_or(GenerateError::NotFinite { at })?;
        if options.stop.contains(&token) {
            break;
        }
        continuation.push(token);
        next = vec![token];
    }
    Ok(continuation)
}

fn check(prompt: &[u32], positions: usize, options: &GenerateOptions) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if prompt.len() >= positions {
        return Err(GenerateError::PromptTooLong { tokens: prompt.len(), positions });
    }
    if !(options.temperature.is_finite() && options.temperature >= 0.0) {
        return Err(GenerateError::Options("temperature must be a number of at least 0"));
    }
    if !(options.top_p > 0.0 && options.top_p <= 1.0) {
        return Err(GenerateError::Options("top_p must be above 0 and at most 1"));
    }
    Ok(())
}

/// Chooses tokens from logits.
struct Sampler<'a> {
    options: &'a GenerateOptions,
    /// (token, probability), likeliest first; kept between tokens for its memory.
    ranked: Vec<(u32, f64)>,
}

impl<'a> Sampler<'a> {
    fn new(options: &'a GenerateOptions) -> Self {
        Self { options, ranked: Vec::new() }
    }

    /// The next token; nothing where a logit is NaN or infinite.
    fn choose(&mut self, logits: &[f32], place: usize) -> Option<u32> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let (mut best, mut highest) = (0, *logits.first()?);
        for (token, &logit) in logits.iter().enumerate() {
            if logit > highest {
                (best, highest) = (token, logit);
            }
        }
        if self.options.temperature == 0.0 {
            return Some(best as u32);
        }
        let scaled = |logit: f32| libm::exp(f64::from(logit - highest) / self.options.temperature);
        self.ranked.clear();
        self.ranked.extend((0u32..).zip(logits).map(|(token, &logit)| (token, scaled(logit))));
        // Likeliest first, ties by token, so that the order is one.
        self.ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = self.ranked.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let reaches = |(_, weight): &(u32, f64)| {
            kept += weight;
            kept >= self.options.top_p * total
        };
        let last = self.ranked.iter().position(reaches).unwrap_or(self.ranked.len() - 1);
        self.ranked.truncate(last + 1);
        let mut left = self.draw(place) * self.ranked.iter().map(|(_, weight)| weight).sum::<f64>();
        for &(token, weight) in &self.ranked {
            left -= weight;
            if left < 0.0 {
                return Some(token);
            }
        }
        // Rounding may leave a remainder past the last one.
        self.ranked.last().map(|&(token, _)| token)
    }

    /// A number in [0, 1) for this place of the continuation.
    fn draw(&self, place: usize) -> f64 {
        let mut draws = generator("lorafleet generate 1", self.options.seed, "");
        draws.set_word_pos(2 * place as u128);
        (draws.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(temperature: f64, top_p: f64, seed: u64) -> GenerateOptions {
        GenerateOptions { max_new_tokens: 4, temperature, top_p, seed, stop: Vec::new() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let options = options(0.0, 1.0, 0);
        let mut sampler = Sampler::new(&options);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0], 0), Some(1));
        assert_eq!(sampler.choose(&[0.0, f32::NAN], 0), None);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let options = options(1.0, 1.0, 7);
        let mut sampler = Sampler::new(&options);
        let logits = [0.0, (3.0f32).ln(), f32::MIN];
        let ones = (0..4000).filter(|&place| sampler.choose(&logits, place) == Some(1)).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000 draws, 3000 expected");
    }

    #[test]
    fn top_p_keeps_the_likeliest() {
        let options = options(1.0, 0.7, 7);
        let mut sampler = Sampler::new(&options);
        assert!((0..200).all(|place| sampler.choose(&[0.0, (3.0f32).ln()], place) == Some(1)));
    }

    #[test]
    fn a_draw_depends_on_seed_and_place_alone() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let draw = |seed, places: &[usize]| -> Vec<_> {
            let options = options(1.0, 0.9, seed);
            let mut sampler = Sampler::new(&options);
            places.iter().map(|&place| sampler.choose(&logits, place)).collect()
        };
        assert_eq!(draw(1, &[0, 1, 2, 3])[3], draw(1, &[3])[0]);
        assert_ne!(draw(1, &[0, 1, 2, 3]), draw(2, &[0, 1, 2, 3]));
    }

    #[test]
    fn bad_requests_are_refused() {
        let greedy = GenerateOptions::greedy(4, Vec::new());
        assert!(matches!(check(&[], 8, &greedy), Err(GenerateError::EmptyPrompt)));
        assert!(matches!(check(&[1; 8], 8, &greedy), Err(GenerateError::PromptTooLong { .. })));
        assert!(matches!(check(&[1], 8, &options(-1.0, 1.0, 0)), Err(GenerateError::Options(_))));
        assert!(matches!(check(&[1], 8, &options(1.0, 0.0, 0)), Err(GenerateError::Options(_))));
    }
}
