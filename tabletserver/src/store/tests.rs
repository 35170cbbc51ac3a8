//! Tests of the stores against each other and against a plain model.
