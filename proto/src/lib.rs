//! The contract: messages and services of lorafleet's gRPC API, generated from `proto/lorafleet/v1/*.proto`.
//!
//! Messages (de)serialize as canonical protobuf JSON too, which is what `--json` prints and Postgres keeps.

pub mod bearer;

/// Version 1 of the API.
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::unwrap_used)]
    tonic::include_proto!("lorafleet.v1");
    include!(concat!(env!("OUT_DIR"), "/lorafleet.v1.serde.rs"));
}

/// The encoded `FileDescriptorSet` of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the gang protocol between workers and the coordinator; a worker of another version is refused.
pub const GANG_PROTOCOL_VERSION: u32 = 2;
