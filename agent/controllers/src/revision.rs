//! Controller revisions: the pod templates a controller has had, so that it can tell old pods from new ones and go
//! back.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        runtime::RawExtension,
    },
};
use serde_json::{Value, json};

use crate::{
    deployment::{LAST_APPLIED, REVISION},
    hash::template_hash,
    kind::Typed,
    owned::{self, owner_reference},
    selector,
    world::World,
    write::{Target, Write},
};

/// The label that says of which revision an object is.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// A controller that keeps revisions.
pub(crate) struct Keeper<'a, K> {
    pub(crate) object: &'a K,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) selector: &'a LabelSelector,
    pub(crate) collisions: i32,
    pub(crate) limit: Option<i32>,
    /// The label in which its revisions keep their hash.
    pub(crate) hash_label: &'static str,
}

/// A controller's revisions, the oldest first.
pub(crate) struct History<'a> {
    pub(crate) all: Vec<&'a ControllerRevision>,
    /// The one of today's template.
    pub(crate) current: Option<&'a ControllerRevision>,
}

/// What is to be done about revisions.
pub(crate) enum Step {
    /// Nothing.
    Keep,
    /// To be made or numbered anew first.
    Write(Box<Write>),
    /// Another controller has the name the next one would get: to be counted.
    Collision,
}

/// A revision's name.
pub(crate) fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// The revision an object says it is of.
pub(crate) fn label(meta: &ObjectMeta) -> Option<&str> {
    meta.labels.as_ref()?.get(HASH_LABEL).map(String::as_str)
}

/// What a revision keeps of a template, as a patch: what `kubectl rollout undo` sends back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template a revision keeps.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

impl<'a, K: Typed> Keeper<'a, K> {
    fn uid(&self) -> &str {
        self.object.meta().uid.as_deref().unwrap_or_default()
    }

    /// Revisions that match and have no controller are adopted.
    pub(crate) fn claim(&self, world: &World) -> Vec<Write> {
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        let all = world.revisions.in_namespace(namespace);
        let ours = all.filter(|r| selector::matches(self.selector, r.metadata.labels.as_ref()));
        owned::claim(ours, self.selector, &owner_reference(self.object), |_| true)
    }

    /// The revisions there are.
    pub(crate) fn history(&self, world: &'a World) -> History<'a> {
        let namespace = self.object.meta().namespace.as_deref();
        let mut all: Vec<&ControllerRevision> = world
            .revisions
            .all()
            .filter(|r| r.metadata.namespace.as_deref() == namespace)
            .filter(|r| owned::is_owned(&r.metadata, self.uid()) && r.metadata.deletion_timestamp.is_none())
            .collect();
        all.sort_by(|a, b| a.revision.cmp(&b.revision).then_with(|| a.metadata.name.cmp(&b.metadata.name)));
        let same = |r: &&&ControllerRevision| template(r).as_ref() == Some(self.template);
        let current = all.iter().rev().find(same).copied();
        History { all, current }
    }

    /// Today's template has a revision, and it is the newest.
    pub(crate) fn step(&self, history: &History<'_>, world: &World) -> Step {
        let newest = history.all.last().map_or(0, |r| r.revision);
        match history.current {
            None => {
                let new = self.next(newest + 1);
                let meta = &new.metadata;
                let (namespace, name) =
                    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
                if world.revisions.get(namespace, name).is_some() {
                    return Step::Collision;
                }
                Step::Write(Box::new(Write::create(new)))
            }
            // Gone back to: it becomes the newest.
            Some(r) if r.revision < newest => {
                Step::Write(Box::new(Write::update(ControllerRevision { revision: newest + 1, ..r.clone() })))
            }
            Some(_) => Step::Keep,
        }
    }

    fn next(&self, number: i64) -> ControllerRevision {
        let meta = self.object.meta();
        let hash = template_hash(self.template, self.collisions);
        let mut labels: BTreeMap<String, String> =
            self.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.extend(self.selector.match_labels.clone().unwrap_or_default());
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| ![LAST_APPLIED, REVISION].contains(&key.as_str()));
        labels.insert(self.hash_label.to_owned(), hash.clone());
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", meta.name.as_deref().unwrap_or_default())),
                namespace: meta.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations).filter(|map| !map.is_empty()),
                owner_references: Some(vec![owner_reference(self.object)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(self.template))),
            revision: number,
        }
    }

    /// Deletes the oldest revisions that no pod is of, beyond the limit.
    pub(crate) fn clean_up(
        &self,
        history: &History<'_>,
        live: &dyn Fn(&ControllerRevision) -> bool,
    ) -> Vec<Write> {
        let current = history.current.and_then(|r| r.metadata.uid.as_deref());
        let is_current = |r: &ControllerRevision| current.is_some() && r.metadata.uid.as_deref() == current;
        let old: Vec<_> = history.all.iter().filter(|r| !is_current(r) && !live(r)).collect();
        let keep = usize::try_from(self.limit.unwrap_or(10)).unwrap_or(0);
        let surplus = old.len().saturating_sub(keep);
        old.into_iter().take(surplus).map(|r| Write::delete(Target::of(*r))).collect()
    }
}
