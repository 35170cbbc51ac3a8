//! Metadata core.
