//! Steps by hand.
