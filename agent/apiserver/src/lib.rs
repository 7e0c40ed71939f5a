//! The `apiserver` crate.
