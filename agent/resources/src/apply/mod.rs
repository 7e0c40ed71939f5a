//! Server-side apply, and who manages which fields: pure.
//!
//! What can be merged is told by a [`Schema`], made from this crate's table of messages or from the schema of a
//! CustomResourceDefinition ([`types`]). Which fields somebody manages is a [`FieldSet`], kept in `metadata.managedFields`
//! in upstream's encoding ([`set`]). [`walk`] finds the fields of an object, what differs between two of them, merges one
//! into another and takes fields out. [`managers`] puts it together: [`track`] says after any write who manages what,
//! [`apply`] makes an object's next state out of what somebody wants of it, or tells the conflicts.
//!
//! Nothing here panics on any value, and what is kept grows no faster than the objects themselves.

mod managers;
mod merge;
mod set;
mod skeleton;
mod types;
mod walk;

#[cfg(test)]
mod tests;

pub use managers::{ApplyError, Conflict, Operation, Writer, apply, check, show, track, track_new};
pub use set::FieldSet;
pub use types::{Key, Schema, Type, TypeId, Types};
