//! The `kube-config` crate.
