//! Which learning rate and weight decay each tensor gets: one for all, or LoRA+'s.

/// Rates of the trained tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Learning rate of `B` over that of `A` (LoRA+, arXiv:2402.12354); 1: one rate for all.
    pub loraplus_lr_ratio: f64,
}

/// LoRA+'s learning rate of an embedding's two matrices, whatever that of the others.
const EMBEDDING_LR: f64 = 1e-6;

impl Rules {
    /// Learning rate and weight decay of a tensor, by its PEFT key and its number of dimensions.
    ///
    /// Without LoRA+ all are alike, as torch does it. With it they are as `peft.optimizers.create_loraplus_optimizer`
    /// groups them: `B` and whatever has one dimension (biases, DoRA's magnitudes) learn faster by the ratio, an
    /// embedding's matrices at 1e-6, and biases do not decay.
    pub fn of(&self, key: &str, dimensions: usize) -> (f64, f64) {
        let Self { lr, weight_decay, loraplus_lr_ratio } = *self;
        if loraplus_lr_ratio == 1.0 {
            (lr, weight_decay)
        } else if key.contains("lora_embedding_") {
            (EMBEDDING_LR, weight_decay)
        } else if key.contains("lora_B") || dimensions == 1 {
            let decay = if key.contains("bias") { 0.0 } else { weight_decay };
            (lr * loraplus_lr_ratio, decay)
        } else {
            (lr, weight_decay)
        }
    }
}
