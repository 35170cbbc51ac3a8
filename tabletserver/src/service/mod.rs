//! The gRPC face of a tablet server.

mod kv;
mod pipe;
mod route;
mod scan;

pub use kv::Kv;
pub use route::Route;
