//! Tablet core.
