//! Clipping by global norm.

/// The factor that brings a gradient of this L2 norm down to `max_norm`, as `torch.nn.utils.clip_grad_norm_` computes
/// it; 1 where the norm is smaller already, or where `max_norm` is 0 (no clipping).
pub fn coefficient(norm: f64, max_norm: f64) -> f32 {
    if max_norm == 0.0 {
        return 1.0;
    }
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_larger_norm_is_clipped() {
        assert_eq!(coefficient(0.5, 1.0), 1.0);
        assert_eq!(coefficient(4.0, 0.0), 1.0);
        assert!((coefficient(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
