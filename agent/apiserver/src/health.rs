//! `/healthz`, `/livez`, `/readyz`: whether this process lives and whether it can answer.

use crate::engine::Engine;
use crate::query::Query;
use crate::respond::plain_text;
use crate::status::{Result, Status};
use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use std::sync::atomic::Ordering;

impl Engine {
    /// All checks of an endpoint, or one of them.
    pub fn health(&self, name: &str, check: &str, query: &Query) -> Result<Response<Body>> {
        let checks = self.checks(name);
        if !check.is_empty() {
            let (_, healthy) =
                checks.iter().find(|(name, _)| *name == check).ok_or_else(Status::no_resource)?;
            let (code, text) = if *healthy {
                (StatusCode::OK, "ok".to_owned())
            } else {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {check} failed\n"))
            };
            return Ok(plain(code, text));
        }
        let left_out: Vec<&str> = query.get("exclude").into_iter().collect();
        Ok(report(name, &checks, &left_out, query.flag("verbose")))
    }

    /// A node that follows is alive; ready is who can answer.
    fn checks(&self, name: &str) -> Vec<(&'static str, bool)> {
        let mut checks = vec![("ping", true), ("log", true), ("store", true)];
        if name == "readyz" {
            let leads = *self.leading.borrow();
            checks.push(("leader", leads));
            checks.push(("poststarthook/bootstrap", self.bootstrapped.load(Ordering::Acquire)));
        }
        checks
    }
}

/// In upstream's form: `ok`, or a line for each check when one failed or all are wanted.
fn report(name: &str, checks: &[(&str, bool)], left_out: &[&str], verbose: bool) -> Response<Body> {
    let counts = |check: &str| !left_out.contains(&check);
    let healthy = checks.iter().all(|(check, healthy)| *healthy || !counts(check));
    if healthy && !verbose {
        return plain(StatusCode::OK, "ok".into());
    }
    let mut text = String::new();
    for (check, healthy) in checks {
        text.push_str(&match (counts(check), healthy) {
            (false, _) => format!("[+]{check} excluded: ok\n"),
            (true, true) => format!("[+]{check} ok\n"),
            (true, false) => format!("[-]{check} failed: reason withheld\n"),
        });
    }
    let (code, verdict) =
        if healthy { (StatusCode::OK, "passed") } else { (StatusCode::INTERNAL_SERVER_ERROR, "failed") };
    text.push_str(&format!("{name} check {verdict}\n"));
    plain(code, text)
}

fn plain(code: StatusCode, text: String) -> Response<Body> {
    let mut response = plain_text(code, text);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn said(left_out: &[&str], verbose: bool, healthy: bool) -> (u16, String) {
        let response = report("readyz", &[("ping", true), ("leader", healthy)], left_out, verbose);
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_form_is_upstreams() {
        assert_eq!(said(&[], false, true).await, (200, "ok".into()));
        let all = "[+]ping ok\n[+]leader ok\nreadyz check passed\n";
        assert_eq!(said(&[], true, true).await, (200, all.into()));
        let failed = "[+]ping ok\n[-]leader failed: reason withheld\nreadyz check failed\n";
        assert_eq!(said(&[], false, false).await, (500, failed.into()));
        assert_eq!(said(&["leader"], false, false).await, (200, "ok".into()));
    }
}
