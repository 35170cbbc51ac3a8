//! The one binary of Ebla.

fn main() {}
