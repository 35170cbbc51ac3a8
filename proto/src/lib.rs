//! The gRPC contract of Ebla (package `ebla.v1`): generated code, conversion to kernel
//! types at the border, and the one shape of errors on the wire.

pub mod backup;
pub mod convert;
pub mod error;
pub mod meta;
pub mod replication;
pub mod split;

/// Generated messages, clients and servers of package `ebla.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ebla.v1");
}

/// The compiled descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ebla_descriptor.bin"));
