//! `/metrics`: what was asked and how long it took, in Prometheus' text format and under upstream's names.

use crate::engine::Engine;
use crate::path::{Find, Route, route};
use crate::query::Query;
use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Upper bounds, in seconds.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// More combinations than this are counted as one: what clients ask for is theirs to choose.
const MAX_SERIES: usize = 4096;

/// What a request was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

#[derive(Default)]
struct Counts {
    series: BTreeMap<Labels, Series>,
    reading: u64,
    mutating: u64,
}

/// All counts of one server.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<Counts>);

/// A request under way; forgotten is over.
pub(crate) struct Seen<'a> {
    metrics: &'a Metrics,
    labels: Labels,
    began: Instant,
}

impl Metrics {
    /// A request begins.
    pub fn begin(&self, request: &Request<Body>, find: Find<'_>) -> Seen<'_> {
        let labels = labels(request, find);
        let mut counts = self.lock();
        *counts.inflight(labels.verb) += 1;
        drop(counts);
        Seen { metrics: self, labels, began: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn inflight(&mut self, verb: &str) -> &mut u64 {
        let reads = ["GET", "LIST", "WATCH"].contains(&verb);
        if reads { &mut self.reading } else { &mut self.mutating }
    }
}

impl Seen<'_> {
    /// Its answer begins.
    pub fn end(self, code: StatusCode) {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut counts = self.metrics.lock();
        let full = counts.series.len() >= MAX_SERIES && !counts.series.contains_key(&self.labels);
        let labels = if full { Labels::default() } else { self.labels.clone() };
        let series = counts.series.entry(labels).or_default();
        *series.codes.entry(code.as_u16()).or_default() += 1;
        // A watch takes as long as its client likes, which says nothing of the server.
        if self.labels.verb != "WATCH" {
            series.count += 1;
            series.sum += seconds;
            for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(seconds <= bound);
            }
        }
    }
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        let mut counts = self.metrics.lock();
        let inflight = counts.inflight(self.labels.verb);
        *inflight = inflight.saturating_sub(1);
    }
}

fn labels(request: &Request<Body>, find: Find<'_>) -> Labels {
    let plain = |verb| Labels { verb, ..Labels::default() };
    let method = match *request.method() {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let Route::Object(target) = route(request.uri().path(), find) else { return plain(method) };
    let named = target.name.is_some();
    let watches = Query::read(request.uri()).is_ok_and(|query| query.flag("watch"));
    let verb = match method {
        "GET" if watches => "WATCH",
        "GET" if !named => "LIST",
        "DELETE" if !named => "DELETECOLLECTION",
        method => method,
    };
    let scope = if named {
        "resource"
    } else if target.namespace.is_some() {
        "namespace"
    } else {
        "cluster"
    };
    let known = |sub: &String| target.kind.subresources.iter().any(|s| s.name() == sub);
    Labels {
        verb,
        group: target.kind.group.to_string(),
        version: target.kind.version.to_string(),
        resource: target.kind.plural.to_string(),
        subresource: target.subresource.clone().filter(known).unwrap_or_default(),
        scope,
    }
}

impl Labels {
    fn show(&self) -> String {
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

impl Engine {
    /// All of it.
    pub fn metrics_text(&self) -> Response<Body> {
        let mut out = self.metrics.lock().show();
        head(
            &mut out,
            "apiserver_storage_objects",
            "gauge",
            "Number of stored objects at the time of last check.",
        );
        let counts: BTreeMap<String, (String, usize)> = resources::all()
            .iter()
            .map(|kind| {
                let prefix = crate::object::prefix(kind, None);
                let count = self.kv(kind).list(&prefix, None, 0).records.len();
                // Versions of one kind share their objects: the first is named.
                (prefix, (kind.qualified(), count))
            })
            .rev()
            .collect();
        for (name, count) in counts.values() {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{name}\"}} {count}");
        }
        let version = &self.config.git_version;
        head(&mut out, "kubernetes_build_info", "gauge", "What this is.");
        let _ =
            writeln!(out, "kubernetes_build_info{{git_version=\"{version}\",major=\"1\",minor=\"36\"}} 1");
        process(&mut out);
        if let Some(audit) = &self.config.audit {
            let (written, lost) = audit.counts();
            head(&mut out, "apiserver_audit_event_total", "counter", "Events for the audit log.");
            let _ = writeln!(out, "apiserver_audit_event_total {written}");
            head(
                &mut out,
                "apiserver_audit_error_total",
                "counter",
                "Events that the audit log does not have.",
            );
            let _ = writeln!(out, "apiserver_audit_error_total{{plugin=\"log\"}} {lost}");
        }
        let mut response = Response::new(Body::from(out));
        let value = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, value);
        response
    }
}

impl Counts {
    fn show(&self) -> String {
        let mut out = String::new();
        head(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests under way, by kind.");
        for (kind, count) in [("mutating", self.mutating), ("readOnly", self.reading)] {
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {count}");
        }
        head(
            &mut out,
            "apiserver_request_total",
            "counter",
            "Requests answered, by what they were about and their code.",
        );
        for (labels, series) in &self.series {
            for (code, count) in &series.codes {
                let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels.show());
            }
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "histogram", "Time until the answer began, in seconds.");
        for (labels, series) in self.series.iter().filter(|(_, series)| series.count > 0) {
            let (labels, count) = (labels.show(), series.count);
            for (bound, bucket) in BUCKETS.iter().zip(series.buckets) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", series.sum);
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The process itself, from /proc.
fn process(out: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().ok())
            .map(|kib| kib * 1024)
    };
    for (name, field) in
        [("process_resident_memory_bytes", "VmRSS"), ("process_virtual_memory_bytes", "VmSize")]
    {
        if let Some(bytes) = bytes(field) {
            head(out, name, "gauge", "Memory size in bytes.");
            let _ = writeln!(out, "{name} {bytes}");
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        head(out, "process_open_fds", "gauge", "Number of open file descriptors.");
        let _ = writeln!(out, "process_open_fds {}", open.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(metrics: &Metrics, method: Method, path: &str) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let find =
            |group: &str, version: &str, plural: &str| resources::find(group, version, plural).cloned();
        metrics.begin(&request, &find).end(StatusCode::OK);
    }

    #[test]
    fn requests_are_counted_by_what_they_are_about() {
        let metrics = Metrics::default();
        asked(&metrics, Method::GET, "/api/v1/namespaces/default/pods");
        asked(&metrics, Method::GET, "/api/v1/namespaces/default/pods");
        asked(&metrics, Method::GET, "/api/v1/pods?watch=true");
        asked(&metrics, Method::PUT, "/apis/apps/v1/namespaces/d/deployments/x/made-up");
        let text = metrics.lock().show();
        let pods = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        assert!(text.contains(&format!("apiserver_request_total{{code=\"200\",{pods}}} 2\n")), "{text}");
        assert!(text.contains(&format!("apiserver_request_duration_seconds_count{{{pods}}} 2\n")), "{text}");
        assert!(text.contains("verb=\"WATCH\"") && !text.contains("made-up"), "{text}");
        assert!(text.contains("request_kind=\"readOnly\"} 0\n"), "{text}");
    }
}
