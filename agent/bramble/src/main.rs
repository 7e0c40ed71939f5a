//! The `bramble` binary.
fn main() {}
