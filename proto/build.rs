//! Generates the messages, the gRPC clients and servers, canonical JSON and the descriptor set from the .proto
//! files; protox compiles them, so no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "lorafleet/v1/spec.proto",
    "lorafleet/v1/jobs.proto",
    "lorafleet/v1/artifacts.proto",
    "lorafleet/v1/fleet.proto",
    "lorafleet/v1/sweeps.proto",
    "lorafleet/v1/tenants.proto",
    "lorafleet/v1/usage.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".") // so that a message has one text only, which digests need
        .compile_well_known_types(true) // so that the next line may name them
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors.clone())?;
    let mut json = pbjson_build::Builder::new();
    json.btree_map(["."]);
    for file in descriptors.file {
        json.register_file_descriptor(file);
    }
    json.build(&[".lorafleet"])?;
    Ok(())
}
