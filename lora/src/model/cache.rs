//! Keys and values of earlier tokens, so that generating a token costs one token.

use candle_core::{DType, Device, Tensor};

use super::ModelError;
use crate::ops::OpError;

/// Keys and values of one sequence in every layer.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

/// Keys and values of one layer, room for `[capacity, K·D]` each, after rotation.
#[derive(Debug)]
pub(crate) struct LayerCache {
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl KvCache {
    /// An empty cache for sequences of up to `capacity` tokens.
    pub(crate) fn new(layers: usize, columns: usize, capacity: usize) -> Result<Self, ModelError> {
        let room = || Tensor::zeros((capacity, columns), DType::F32, &Device::Cpu).map_err(OpError::from);
        let layer = |_| Ok(LayerCache { k: room()?, v: room()?, len: 0 });
        let layers = (0..layers).map(layer).collect::<Result<_, OpError>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens that it may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Counts tokens that every layer has appended. After a pass that failed, those that some layers appended are
    /// forgotten.
    pub(crate) fn settle(&mut self, tokens: usize) {
        self.len += tokens;
        let len = self.len;
        self.layers.iter_mut().for_each(|layer| layer.len = len);
    }
}

impl LayerCache {
    /// Appends new keys and values `[n, K·D]`, in place; returns all of them, without a copy.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), OpError> {
        self.k.slice_set(k, 0, self.len)?;
        self.v.slice_set(v, 0, self.len)?;
        self.len += k.dim(0)?;
        Ok((self.k.narrow(0, 0, self.len)?, self.v.narrow(0, 0, self.len)?))
    }
}
