//! The names and sizes of a model's modules and tensors, to check adapters against.

use std::collections::HashMap;

use super::ModelError;
use crate::params::{AdapterView, ModuleKind};

/// Sizes by name.
#[derive(Debug)]
pub(super) struct Known {
    /// `(in, out)` of each linear layer.
    pub linears: HashMap<String, (usize, usize)>,
    /// The token embedding, `(V, H)`.
    pub embedding: Option<(String, (usize, usize))>,
    /// Shapes of all tensors.
    pub tensors: HashMap<String, Vec<usize>>,
}

impl Known {
    /// Every adapted module and whole tensor is one of the model's, of its size, and the buffers are as long as the
    /// layout.
    pub fn check(&self, adapter: &AdapterView, gradients: Option<usize>) -> Result<(), ModelError> {
        let problem =
            |module: &str, message: String| Err(ModelError::Adapter { module: module.to_owned(), message });
        for module in adapter.layout.modules() {
            let wanted = match module.kind {
                ModuleKind::Linear => self.linears.get(&module.module),
                ModuleKind::Embedding => {
                    self.embedding.as_ref().filter(|(name, _)| *name == module.module).map(|(_, size)| size)
                }
            };
            let Some(&wanted) = wanted else {
                return problem(&module.module, "is for a layer that this model does not have".to_owned());
            };
            let found = (module.in_features, module.out_features);
            if found != wanted || module.rank == 0 {
                let message = format!("is {found:?} of rank {}, but the layer is {wanted:?}", module.rank);
                return problem(&module.module, message);
            }
        }
        for tensor in adapter.layout.whole() {
            match self.tensors.get(&tensor.name) {
                Some(shape) if *shape == tensor.shape => {}
                Some(shape) => {
                    let message = format!("is {:?}, but the model's is {shape:?}", tensor.shape);
                    return problem(&tensor.name, message);
                }
                None => return problem(&tensor.name, "is a tensor that this model does not have".to_owned()),
            }
        }
        let len = adapter.layout.len();
        if adapter.weights.len() != len || gradients.is_some_and(|g| g != len) {
            return problem("all modules", format!("needs buffers of {len} values"));
        }
        Ok(())
    }
}
