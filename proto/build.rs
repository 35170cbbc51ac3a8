//! Compiles the protos with a pure Rust compiler and keeps the descriptor set for reflection.

use prost::Message as _;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let names = [
        "types",
        "kv",
        "route",
        "admin",
        "backup",
        "control",
        "meta_raft",
        "replication",
        "bootstrap",
        "lost",
        "split",
        "heat",
        "room",
        "room_peer",
        "watch",
    ];
    let files = names.map(|name| format!("ebla/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ebla_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
