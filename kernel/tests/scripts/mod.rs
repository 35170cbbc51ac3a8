//! What the golden scripts share: one command language per core.

pub mod show;
pub mod tablet;
mod words;
