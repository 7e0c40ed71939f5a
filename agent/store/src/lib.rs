//! The replicated, revisioned key-value store: where a cluster's state lives.
//!
//! Data flows so: [`Kv::commit`] hands a transaction to the store's thread (`shell`), which proposes it to Raft
//! (`core`). Raft asks for it to be written (`writer`, `disk`) and sent to the other members ([`Transport`]). Once a
//! majority has it on disk, every member applies it to the state in memory (`space`): expectations are checked, the
//! next revision is made, watchers get their events, and the one who committed gets the answer.
//!
//! After a power cut, at any moment: all that was acknowledged is there; a write that was under way is there wholly
//! or not at all; a vote given is remembered. Nothing is written while nothing changes.
//!
//! `core` and `space` decide without threads, clocks, disks or sockets, so whole clusters run in a test; `shell`,
//! `writer` and `disk` do what they say.

mod change;
mod core;
mod disk;
mod guard;
mod kv;
mod memlog;
mod shell;
mod space;
mod status;
mod store;
mod volatile;
mod wire;
mod writer;

pub use change::{Change, ChangeError};
pub use disk::OpenError;
#[doc(hidden)]
pub use disk::{Fault, Operation};
pub use kv::*;
pub use status::{Progress, Role, Status};
pub use store::{BootstrapError, Config, MAX_MESSAGE, ReceiveError, Store, Transport, is_snapshot};
pub use volatile::Volatile;
pub use wire::FORMAT;
