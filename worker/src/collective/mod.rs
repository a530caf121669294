//! How the members of a gang sum their gradients: one trait, one body for each kind of network.
//!
//! [`solo`] is a gang of one, [`tcp`] a ring between worker processes. [`conformance`] is the suite that every body
//! must pass.

mod abort;
pub mod conformance;
mod error;
pub mod solo;
pub mod tcp;

pub use abort::Abort;
pub use error::{CollectiveError, Peer};

/// One member's end of a gang's communicator. It lives for one generation; after an error it is of no further use.
///
/// Every member calls the same operations in the same order with buffers of the same length. An operation returns
/// an error, never hangs: a peer that is gone, silent or out of step is named in it.
pub trait Collective: Send {
    /// This member's place in the gang, from 0.
    fn index(&self) -> u32;

    /// The gang's size.
    fn world_size(&self) -> u32;

    /// Replaces each element by its sum over all members, exactly: order does not matter. A sum that does not fit is
    /// [`CollectiveError::Overflow`], never a wrapped number.
    fn all_reduce_i64(&mut self, buffer: &mut [i64]) -> Result<(), CollectiveError>;

    /// Replaces each element by its sum over all members: the same bits on every member, in an order of additions
    /// that depends on the gang's size.
    fn all_reduce_f32(&mut self, buffer: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces `bytes` on every member by `root`'s: by all of them, or after an error by none.
    fn broadcast(&mut self, root: u32, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Payload bytes that this member has sent to its peers so far.
    fn bytes_sent(&self) -> u64;

    /// Bytes of headers that this member has sent beside the payload so far; the handshake and pings are not counted.
    fn framing_bytes_sent(&self) -> u64;

    /// The handle that ends this collective from any thread.
    fn abort_handle(&self) -> Abort;

    /// Leaves politely: what was sent is delivered, and peers that need nothing more from this member see no error.
    fn leave(self: Box<Self>);
}
