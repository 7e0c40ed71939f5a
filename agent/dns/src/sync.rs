//! Keeps the zone true to services and endpoint slices.

use std::{fmt::Debug, sync::Arc};

use futures::StreamExt;
use hickory_proto::rr::Name;
use ipnet::Ipv4Net;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::zone::Zone;

/// What each zone is made for.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) domain: Name,
    pub(crate) reverse: Vec<Ipv4Net>,
}

/// Publishes a zone after every change, from the moment both kinds have been listed. Runs forever.
pub(crate) async fn keep(origin: Origin, client: Client, zone: watch::Sender<Option<Arc<Zone>>>) {
    // One place: any number of changes while a zone is being made are one more zone.
    let (changed, mut changes) = mpsc::channel(1);
    let (services, service_writer) = reflector::store();
    let (slices, slice_writer) = reflector::store();
    let services_fed = feed(Api::<Service>::all(client.clone()), service_writer, changed.clone());
    let slices_fed = feed(Api::<EndpointSlice>::all(client), slice_writer, changed);
    let build = async {
        // Both writers live as long as this future's siblings, so these cannot fail before they end.
        if services.wait_until_ready().await.is_err() || slices.wait_until_ready().await.is_err() {
            return;
        }
        let mut serial = 1_u32;
        loop {
            zone.send_replace(Some(Arc::new(build(&origin, serial, &services, &slices))));
            serial = serial.wrapping_add(1);
            if changes.recv().await.is_none() {
                return;
            }
        }
    };
    tokio::select! {
        () = services_fed => {}
        () = slices_fed => {}
        () = build => {}
    }
}

fn build(origin: &Origin, serial: u32, services: &Store<Service>, slices: &Store<EndpointSlice>) -> Zone {
    let (services, slices) = (services.state(), slices.state());
    let (domain, reverse) = (origin.domain.clone(), origin.reverse.clone());
    Zone::new(domain, reverse, serial, services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref))
}

async fn feed<K>(api: Api<K>, writer: reflector::store::Writer<K>, changed: mpsc::Sender<()>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    ObjectRef<K>: Send,
{
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(reflector(writer, events.modify(trim)));
    while let Some(event) = events.next().await {
        match event {
            // While the list comes in, the store still holds what was before.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => {
                // Full: a zone is about to be made anyway.
                let _ = changed.try_send(());
            }
            Err(error) => tracing::debug!(%error, "watch failed"),
        }
    }
}

fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    object.meta_mut().annotations = None;
}
