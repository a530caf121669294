//! Where the backward pass ends: nothing below the lowest trained tensor needs a gradient.

/// How far the backward pass goes within one part of a block, from its end to its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    /// To the norm after the part.
    After,
    /// To its last layer.
    Output,
    /// To the norms of queries and keys.
    Heads,
    /// To its first layers.
    Input,
    /// To the norm before it.
    Before,
    /// Through it: what lies below needs the gradient of its input.
    Through,
}

impl Until {
    /// The lowest place at which something is trained, of places from the lowest to the highest.
    pub fn lowest<const N: usize>(places: [(Self, bool); N]) -> Option<Self> {
        places.into_iter().find_map(|(until, trained)| trained.then_some(until))
    }
}
