//! Keys and values of earlier tokens, so that generating a token costs one token.

use candle_core::{Device, Tensor};

use crate::ops::{OpError, View, view};

/// Keys and values of one sequence in every layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

/// Keys and values of one layer, `[len, K·D]` each, after rotation.
#[derive(Debug)]
pub(crate) struct LayerCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvCache {
    /// An empty cache for sequences of up to `capacity` tokens.
    pub(crate) fn new(layers: usize, columns: usize, capacity: usize) -> Self {
        let layer = || LayerCache {
            k: Vec::with_capacity(capacity * columns),
            v: Vec::with_capacity(capacity * columns),
        };
        Self { layers: (0..layers).map(|_| layer()).collect(), len: 0, capacity }
    }

    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Counts tokens that every layer has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl LayerCache {
    /// Appends new keys and values `[n, K·D]`; returns all of them as tensors.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), OpError> {
        let columns = k.dim(1)?;
        let grow = |cache: &mut Vec<f32>, new: View| -> Result<Tensor, OpError> {
            cache.extend_from_slice(&new);
            Ok(Tensor::from_slice(cache, (cache.len() / columns, columns), &Device::Cpu)?)
        };
        let k = grow(&mut self.k, view("cache", k)?)?;
        let v = grow(&mut self.v, view("cache", v)?)?;
        Ok((k, v))
    }
}
