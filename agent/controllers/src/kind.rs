//! The kinds the controllers know by type, and every other kind by its metadata.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        coordination::v1::Lease,
        core::v1::{
            Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota,
            Service,
        },
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource,
    core::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Index into [`Kinds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KindId(pub(crate) usize);

/// How to reach one kind.
#[derive(Clone, Debug)]
pub(crate) struct KindInfo {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

/// Every kind of this cluster: the typed ones first, in the order of [`TYPED`], then what discovery added.
#[derive(Clone, Debug)]
pub(crate) struct Kinds {
    list: Vec<KindInfo>,
    by_name: BTreeMap<(String, String), KindId>,
}

/// A kind cached as a whole.
pub(crate) trait Typed:
    Resource<DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + serde::Serialize
    + Send
    + Sync
    + 'static
{
    /// Its place.
    const KIND: KindId;
    /// Makes it one of [`Object`].
    fn wrap(self) -> Object;
}

macro_rules! typed {
    ($($index:literal $kind:ident $namespaced:literal),* $(,)?) => {
        /// An object as it came from the API.
        #[derive(Clone, Debug)]
        pub(crate) enum Object {
            $($kind(Box<$kind>),)*
            /// A kind of which only the metadata is kept.
            Meta(KindId, Box<ObjectMeta>),
        }

        $(impl Typed for $kind {
            const KIND: KindId = KindId($index);
            fn wrap(self) -> Object { Object::$kind(Box::new(self)) }
        })*

        impl Object {
            pub(crate) fn kind(&self) -> KindId {
                match self { $(Self::$kind(_) => KindId($index),)* Self::Meta(kind, _) => *kind }
            }

            pub(crate) fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(o) => &o.metadata,)* Self::Meta(_, meta) => meta }
            }

            /// The JSON to send; `None` for metadata alone, which is never written back.
            pub(crate) fn to_json(&self) -> Option<Value> {
                match self { $(Self::$kind(o) => serde_json::to_value(o).ok(),)* Self::Meta(..) => None }
            }

            /// Reads a response of the API.
            pub(crate) fn parse(kind: KindId, object: DynamicObject) -> Option<Self> {
                match kind.0 {
                    $($index => object.try_parse::<$kind>().ok().map(Typed::wrap),)*
                    _ => Some(Self::Meta(kind, Box::new(object.metadata))),
                }
            }
        }

        impl Kinds {
            /// The typed kinds alone.
            pub(crate) fn typed() -> Self {
                let mut kinds = Self { list: Vec::new(), by_name: BTreeMap::new() };
                $(kinds.push(KindInfo { resource: ApiResource::erase::<$kind>(&()), namespaced: $namespaced });)*
                kinds
            }
        }

        /// Calls a macro with every typed kind.
        macro_rules! for_each_typed { ($call:ident) => { $($call!($kind);)* } }
        pub(crate) use for_each_typed;
        /// How many there are.
        pub(crate) const TYPED: usize = [$($index),*].len();
    };
}

typed! {
    0 Pod true,
    1 ReplicaSet true,
    2 ReplicationController true,
    3 Deployment true,
    4 Service true,
    5 Endpoints true,
    6 EndpointSlice true,
    7 Node false,
    8 Namespace false,
    9 Lease true,
    10 Job true,
    11 DaemonSet true,
    12 ControllerRevision true,
    13 CronJob true,
    14 StatefulSet true,
    15 PersistentVolumeClaim true,
    16 PodDisruptionBudget true,
    17 ResourceQuota true,
}

impl Kinds {
    /// Adds a kind unless it is known.
    pub(crate) fn push(&mut self, info: KindInfo) {
        let name = (info.resource.group.clone(), info.resource.kind.clone());
        if !self.by_name.contains_key(&name) {
            self.by_name.insert(name, KindId(self.list.len()));
            self.list.push(info);
        }
    }

    pub(crate) fn get(&self, id: KindId) -> Option<&KindInfo> {
        self.list.get(id.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The kinds known by metadata only.
    pub(crate) fn untyped(&self) -> impl Iterator<Item = (KindId, &KindInfo)> {
        self.list.iter().enumerate().skip(TYPED).map(|(i, info)| (KindId(i), info))
    }

    /// Finds the kind an owner reference names.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<KindId> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.by_name.get(&(group.to_owned(), kind.to_owned())).copied()
    }

    /// Kinds that somebody makes: when one of these objects changes, there may be more kinds.
    pub(crate) fn definition(&self) -> Option<KindId> {
        self.find("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    }

    /// Core events, which have a deadline.
    pub(crate) fn event(&self) -> Option<KindId> {
        self.find("v1", "Event")
    }
}
