//! The kube side: what the API says becomes the table; what could not be bound becomes an Event.

use crate::table::{ServiceRef, Table, build};
use crate::{BindFailure, Config, Error, Forwarder, Frontend, Protocol};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// A port that is taken is tried again after this long, and then ever more rarely; also with every change.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Events being sent at once; more failures than that say nothing new.
const MAX_REPORTS: usize = 16;

pub(crate) async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let (services, service_changes) = watch::<Service>(Api::all(client.clone()));
    let (slices, slice_changes) = watch::<EndpointSlice>(Api::all(client.clone()));
    let mut changes = futures::stream::select(service_changes, slice_changes);
    let mut forwarder =
        Forwarder::new(config.node_ips.clone(), config.max_connections, shutdown.child_token());
    let mut reporter = Failures::new(client, &config.node_name);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            change = changes.next() => if change.is_none() { return Err(Error::WatchEnded) },
            () = reporter.retry_due() => {}
        }
        // A burst of changes makes one table.
        while let Some(change) = changes.next().now_or_never() {
            if change.is_none() {
                return Err(Error::WatchEnded);
            }
        }
        if is_ready(&services) && is_ready(&slices) {
            let table = build(&config, &services.state(), &slices.state());
            let failures = forwarder.apply(&table);
            reporter.take(failures, &table);
        }
    }
}

/// A cache of all objects of a kind, and its changes. It goes on through disconnects, keeping what it knew.
fn watch<K>(api: Api<K>) -> (Store<K>, BoxStream<'static, ()>)
where
    K: Resource + Lookup + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    <K as Resource>::DynamicType: Default + Eq + Hash + Clone,
    <K as Lookup>::DynamicType: Default + Eq + Hash + Clone,
    K: Lookup<DynamicType = <K as Resource>::DynamicType>,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        // Half of an object's size, and nothing here reads it.
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer);
    (store, settled(events).boxed())
}

/// Only the changes that show in the cache: a list takes effect when it is complete.
fn settled<K, E>(
    events: impl Stream<Item = Result<watcher::Event<K>, E>> + Send + 'static,
) -> impl Stream<Item = ()> + Send + 'static
where
    K: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Ok(_) => Some(()),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "watch interrupted");
                None
            }
        }
    })
}

fn is_ready<K>(store: &Store<K>) -> bool
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    matches!(store.wait_until_ready().now_or_never(), Some(Ok(())))
}

/// What could not be bound: told once, tried again.
struct Failures {
    recorder: Recorder,
    known: BTreeSet<Frontend>,
    pause: Duration,
    due: Option<Instant>,
    reports: JoinSet<()>,
}

impl Failures {
    fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "bramble-proxy".into(), instance: Some(node.into()) };
        Self {
            recorder: Recorder::new(client, reporter),
            known: BTreeSet::new(),
            pause: FIRST_RETRY,
            due: None,
            reports: JoinSet::new(),
        }
    }

    /// Waits until the failed ones should be tried again; for ever if there are none.
    async fn retry_due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, failures: Vec<BindFailure>, table: &Table) {
        while self.reports.try_join_next().is_some() {}
        let failed: BTreeSet<Frontend> = failures.iter().map(|failure| failure.frontend).collect();
        self.pause = match failed == self.known {
            true => (self.pause * 2).min(LAST_RETRY),
            false => FIRST_RETRY,
        };
        self.due = (!failed.is_empty()).then(|| Instant::now() + self.pause);
        let known = std::mem::replace(&mut self.known, failed);
        for failure in failures.iter().filter(|failure| !known.contains(&failure.frontend)) {
            if let Some(backends) = table.get(&failure.frontend) {
                self.report(failure, &backends.service);
            }
        }
    }

    fn report(&mut self, failure: &BindFailure, service: &ServiceRef) {
        let note = note(failure);
        tracing::warn!(service.namespace, service.name, "{note}");
        if self.reports.len() >= MAX_REPORTS {
            return;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: "PortUnavailable".into(),
            note: Some(note),
            action: "Listen".into(),
            secondary: None,
        };
        let (recorder, reference) = (self.recorder.clone(), reference(service));
        self.reports.spawn(async move {
            match timeout(REPORT_TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "event not recorded");
                }
                Err(_) => tracing::debug!("event not recorded in time"),
            }
        });
    }
}

fn note(failure: &BindFailure) -> String {
    let protocol = match failure.frontend.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    format!("cannot listen on {} ({protocol}): {}", failure.frontend.address, failure.error)
}

fn reference(service: &ServiceRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(service.namespace.clone()),
        name: Some(service.name.clone()),
        uid: Some(service.uid.clone()),
        ..ObjectReference::default()
    }
}
