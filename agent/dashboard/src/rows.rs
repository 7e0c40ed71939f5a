//! What the pages keep of the cluster's objects: one row each, made at the door. Nothing else of an object stays in
//! memory, so what a page must not show (environment, volumes, annotations) is not there to be shown.

mod event;
mod node;
mod pod;
mod service;

pub(crate) use event::EventRow;
pub(crate) use node::NodeRow;
pub(crate) use pod::PodRow;
pub(crate) use service::ServiceRow;

use crate::known::{Known, Table};
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// How a state is coloured. The text always says it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Somebody should look.
    Bad,
    /// Over, or of no interest.
    Quiet,
}

impl Tone {
    /// The class in the style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Bad => "bad",
            Self::Quiet => "quiet",
        }
    }
}

/// One line of a table, made of one object.
pub(crate) trait Row: Clone + PartialEq + Serialize + Send + Sync + 'static {
    /// The kind it is made of.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;

    /// Pure: everything a page may say about the object.
    fn new(object: &Self::Object) -> Self;

    /// Where rows of this kind are kept.
    fn table(known: &mut Known) -> &mut Table<Self>;
}
