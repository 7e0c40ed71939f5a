//! ResourceQuota: what a namespace may take at most.
//!
//! What is used is counted from what is there, so nothing has to be kept right beside it. Two writers that each would
//! still fit, but not both, are told apart by one key for each namespace that has quotas: each new object there writes
//! it, and whoever comes second counts again.

use crate::engine::Engine;
use crate::object::{name, text};
use crate::status::{Result, Status};
use resources::Descriptor;
use resources::quota::{self, Amounts};
use serde_json::Value;
use store::{Expect, Write};

const TURN: &str = "/bramble/quota/";

/// Refuses what goes beyond a quota of its namespace; what is to be written beside an object that does not.
pub(super) fn admit(engine: &Engine, kind: &Descriptor, new: &Value) -> Result<Option<Write>> {
    let namespace = text(new, "/metadata/namespace");
    // What is volatile is not written together with the turn.
    if !kind.namespaced || kind.volatile || kind.group == "events.k8s.io" || kind.plural == "events" {
        return Ok(None);
    }
    // The turn is read before anything is counted.
    let key = format!("{TURN}{namespace}");
    let turn = engine.durable.get(&key);
    let quotas = engine.all("", "resourcequotas", namespace);
    let requested = quota::usage(&kind.group, &kind.plural, new);
    let concerned: Vec<(&Value, Amounts)> = quotas
        .iter()
        .filter(|q| quota::covers(q, &kind.group, &kind.plural, new))
        .map(|q| (q, quota::hard(q)))
        .filter(|(_, hard)| hard.keys().any(|name| requested.contains_key(name)) || kind.plural == "pods")
        .collect();
    if concerned.is_empty() {
        return Ok(None);
    }
    for (found, hard) in &concerned {
        check(engine, kind, found, hard, &requested, new)
            .map_err(|why| Status::forbidden(&kind.group, &kind.plural, name(new), &why))?;
    }
    let expect = turn.map_or(Expect::Absent, |record| Expect::Modified(record.modified));
    let value = Some(name(new).to_owned().into_bytes().into());
    Ok(Some(Write { key, expect, value }))
}

fn check(
    engine: &Engine,
    kind: &Descriptor,
    quota: &Value,
    hard: &Amounts,
    requested: &Amounts,
    new: &Value,
) -> std::result::Result<(), String> {
    if kind.group.is_empty() && kind.plural == "pods" {
        let unsaid = quota::unsaid(hard, new);
        if !unsaid.is_empty() {
            return Err(format!("failed quota: {}: must specify {}", name(quota), unsaid.join("; ")));
        }
    }
    let used = used(engine, kind, quota, text(new, "/metadata/namespace"));
    match quota::exceeded(hard, &used, requested) {
        Some(why) => Err(format!("exceeded quota: {}, {why}", name(quota))),
        None => Ok(()),
    }
}

/// What the objects of a kind take of a quota now.
fn used(engine: &Engine, kind: &Descriptor, quota: &Value, namespace: &str) -> Amounts {
    let mut used = Amounts::new();
    for object in engine.objects(kind, namespace) {
        if quota::covers(quota, &kind.group, &kind.plural, &object) {
            quota::sum(&mut used, &quota::usage(&kind.group, &kind.plural, &object));
        }
    }
    used
}
