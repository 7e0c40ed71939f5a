//! A pod's specification, which pods and every template of pods share.

mod containers;
pub mod defaults;
pub mod ephemeral;
pub mod qos;
mod resources;
mod validate;

pub use containers::target_port;
pub use defaults::{pod_only, pod_spec as fill};
pub use validate::{Place, one_of, pod_spec as check};
