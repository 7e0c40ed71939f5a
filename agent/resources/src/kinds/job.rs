//! Job: pods that run until enough of them have succeeded.

use super::BASE;
use super::columns::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, string};
use super::workload::{Place, check_template, fill_template, not_negative, one_of, read_selector};
use crate::cause::{Causes, invalid, required};
use crate::json::{Fields, child, default, fields, flag, int, items, spec, text};
use crate::{Builtin, CellContext, Subresource, metadata, names, time};
use serde_json::{Value, json};

pub const JOB: Builtin = Builtin {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Status", |job, _| status(job).into()),
        string("Completions", |job, _| completions(job).into()),
        string("Duration", |job, context| duration(job, context).into()),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    selectable: &[("status.successful", "/status/succeeded")],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

fn status(job: &Value) -> &'static str {
    let is = |name: &str| {
        items(job, "/status/conditions")
            .iter()
            .any(|c| text(c, "/type") == name && text(c, "/status") == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if !text(job, "/metadata/deletionTimestamp").is_empty() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// `1/3`, or `1/1 of 3` where any of three may succeed.
fn completions(job: &Value) -> String {
    let done = int(job, "/status/succeeded").unwrap_or(0);
    match (int(job, "/spec/completions"), int(job, "/spec/parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
}

fn duration(job: &Value, context: &CellContext) -> String {
    let at = |pointer| time::parse(text(job, pointer));
    match (at("/status/startTime"), at("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => time::human_duration(end.unwrap_or(context.now).saturating_sub(start)),
    }
}

fn defaults(object: &mut Value) {
    let uid = text(object, "/metadata/uid").to_owned();
    let name = text(object, "/metadata/name").to_owned();
    let Some(spec) = spec(object) else { return };
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let by_index = spec.contains_key("backoffLimitPerIndex");
    default(spec, "backoffLimit", if by_index { i32::MAX } else { 6 });
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let failed = spec.contains_key("podFailurePolicy");
    default(spec, "podReplacementPolicy", if failed { "Failed" } else { "TerminatingOrFailed" });
    fill_template(spec);
    if !uid.is_empty() && spec.get("manualSelector") != Some(&Value::Bool(true)) {
        generate_selector(spec, &uid, &name);
    }
    let labels = spec.get("template").and_then(|t| t.pointer("/metadata/labels")).cloned();
    let meta = object.as_object_mut().and_then(|o| child(o, "metadata"));
    if let (Some(Value::Object(labels)), Some(meta)) = (labels, meta)
        && let Some(own) = child(meta, "labels")
        && own.is_empty()
    {
        *own = labels;
    }
    if let Some(job) = object.as_object_mut() {
        child(job, "status");
    }
}

/// A job finds its pods by its own uid, unless the user took that over.
fn generate_selector(spec: &mut Fields, uid: &str, name: &str) {
    let template = spec.get_mut("template").and_then(Value::as_object_mut);
    let meta = template.and_then(|t| child(t, "metadata"));
    let Some(labels) = meta.and_then(|m| child(m, "labels")) else { return };
    for (key, value) in [
        ("controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
    ] {
        default(labels, key, value);
    }
    default(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_spec(new, "spec", &mut causes);
    let selector = read_selector(new, "job", &mut causes);
    check_template(new, Place::Once, selector.as_ref(), &mut causes);
    let uid = text(new, "/metadata/uid");
    let generated = fields(new, "/spec/selector/matchLabels")
        .is_some_and(|labels| labels.values().any(|value| value.as_str() == Some(uid)));
    if !uid.is_empty() && !flag(new, "/spec/manualSelector") && !generated {
        let value = new.pointer("/spec/selector").cloned().unwrap_or_default();
        causes.push(invalid("spec.selector", value, "`selector` not auto-generated"));
    }
    if let Some(old) = old {
        keep(new, old, &mut causes);
    }
    causes
}

/// What a job and a CronJob's template of one have in common; `at` is the field it stands in.
pub fn check_spec(object: &Value, at: &str, causes: &mut Causes) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        not_negative(object, &format!("{at}.{name}"), causes);
    }
    let spec = object.pointer(&super::workload::pointer(at)).unwrap_or(&Value::Null);
    if !text(spec, "/completionMode").is_empty() {
        one_of(object, &format!("{at}.completionMode"), &["NonIndexed", "Indexed"], causes);
    }
    if text(spec, "/completionMode") == "Indexed" && int(spec, "/completions").is_none() {
        causes.push(required(format!("{at}.completions"), "when completion mode is Indexed"));
    }
    if !text(spec, "/podReplacementPolicy").is_empty() {
        let words = ["Failed", "TerminatingOrFailed"];
        one_of(object, &format!("{at}.podReplacementPolicy"), &words, causes);
    }
}

/// A job's pods are what they are from the start; only where they may run can change, before they do.
fn keep(new: &Value, old: &Value, causes: &mut Causes) {
    let indexed = text(old, "/spec/completionMode") == "Indexed";
    let scaled = int(new, "/spec/completions") == int(new, "/spec/parallelism");
    if !(indexed && scaled) {
        metadata::immutable(new, Some(old), "/spec/completions", "spec.completions", causes);
    }
    metadata::immutable(new, Some(old), "/spec/selector", "spec.selector", causes);
    metadata::immutable(new, Some(old), "/spec/completionMode", "spec.completionMode", causes);
    let waits = flag(old, "/spec/suspend") && text(old, "/status/startTime").is_empty();
    if !waits {
        metadata::immutable(new, Some(old), "/spec/template", "spec.template", causes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Value {
        let mut job = json!({"metadata": {"name": "pi", "uid": "u-1"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}});
        defaults(&mut job);
        job
    }

    #[test]
    fn a_job_selects_its_own_pods() {
        let job = job();
        assert_eq!(validate(&job, None), []);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "pi");
        assert_eq!(job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]);
        assert_eq!((&job["spec"]["backoffLimit"], &job["spec"]["completions"]), (&json!(6), &json!(1)));
        let mut own = job.clone();
        own["spec"]["selector"] = json!({"matchLabels": {"job-name": "pi"}});
        assert_eq!(validate(&own, None)[0].message.split(": ").last(), Some("`selector` not auto-generated"));
        own["spec"]["manualSelector"] = true.into();
        assert_eq!(validate(&own, None), []);
    }

    #[test]
    fn pods_that_never_end_are_refused() {
        let mut job = job();
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        let causes = validate(&job, None);
        assert_eq!(causes[0].field, "spec.template.spec.restartPolicy");
        assert_eq!(causes[0].message, r#"Required value: valid values: "OnFailure", "Never""#);
    }

    #[test]
    fn a_job_stays_what_it_is() {
        let old = job();
        let mut new = old.clone();
        new["spec"]["parallelism"] = 5.into();
        assert_eq!(validate(&new, Some(&old)), []);
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
        assert_eq!(validate(&new, Some(&old))[0].field, "spec.template");
    }

    #[test]
    fn cells_are_kubectls() {
        let mut job = job();
        let context = CellContext { now: 100 };
        assert_eq!(
            (status(&job), completions(&job), duration(&job, &context)),
            ("Running", "0/1".into(), String::new())
        );
        job["status"] = json!({"succeeded": 1, "startTime": "1970-01-01T00:00:10Z",
            "conditions": [{"type": "Complete", "status": "True"}], "completionTime": "1970-01-01T00:00:40Z"});
        assert_eq!(
            (status(&job), completions(&job), duration(&job, &context)),
            ("Complete", "1/1".into(), "30s".into())
        );
    }
}
