//! CronJob: a Job by the clock.

use super::BASE;
use super::columns::{AGE, NAME, SELECTOR, boolean, integer, or_none, string, wide};
use super::workload::{Place, check_template_at, fill_template, not_negative, one_of};
use super::{cron, job};
use crate::cause::{Causes, invalid, required};
use crate::json::{child, default, flag, items, spec, text};
use crate::{Builtin, CellContext, Subresource, metadata, names, time};
use serde_json::Value;

/// Room is left for what is added to a job's name.
const MAX_NAME: usize = 52;

pub const CRON_JOB: Builtin = Builtin {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Schedule", |object, _| text(object, "/spec/schedule").into()),
        string("Timezone", |object, _| or_none(text(object, "/spec/timeZone"))),
        boolean("Suspend", |object, _| flag(object, "/spec/suspend").into()),
        integer("Active", |object, _| items(object, "/status/active").len().into()),
        string("Last Schedule", last),
        AGE,
        wide("Containers", |object, _| of_containers(object, "/name")),
        wide("Images", |object, _| of_containers(object, "/image")),
        SELECTOR,
    ],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

fn last(object: &Value, context: &CellContext) -> Value {
    match text(object, "/status/lastScheduleTime") {
        "" => or_none(""),
        at => time::since(at, context.now).into(),
    }
}

fn of_containers(object: &Value, pointer: &str) -> Value {
    let all = items(object, "/spec/jobTemplate/spec/template/spec/containers").iter();
    all.map(|c| text(c, pointer)).collect::<Vec<_>>().join(",").into()
}

fn defaults(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = child(spec, "jobTemplate") {
            child(template, "metadata");
            if let Some(spec) = child(template, "spec") {
                fill_template(spec);
            }
        }
    }
    if let Some(object) = object.as_object_mut() {
        child(object, "status");
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let name = text(new, "/metadata/name");
    if old.is_none() && name.len() > MAX_NAME {
        causes.push(invalid("metadata.name", name, "must be no more than 52 characters"));
    }
    check_schedule(new, &mut causes);
    for field in
        ["spec.startingDeadlineSeconds", "spec.successfulJobsHistoryLimit", "spec.failedJobsHistoryLimit"]
    {
        not_negative(new, field, &mut causes);
    }
    one_of(new, "spec.concurrencyPolicy", &["Allow", "Forbid", "Replace"], &mut causes);
    job::check_spec(new, "spec.jobTemplate.spec", &mut causes);
    let selector = new.pointer("/spec/jobTemplate/spec/selector").filter(|s| !s.is_null());
    if let Some(selector) = selector {
        let detail = "`selector` will be auto-generated";
        causes.push(invalid("spec.jobTemplate.spec.selector", selector.clone(), detail));
    }
    check_template_at(new, "spec.jobTemplate.spec.template", Place::Once, None, &mut causes);
    causes
}

fn check_schedule(object: &Value, causes: &mut Causes) {
    let schedule = text(object, "/spec/schedule");
    if schedule.is_empty() {
        causes.push(required("spec.schedule", ""));
    } else if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(invalid("spec.schedule", schedule, detail));
    } else if let Err(fault) = cron::check(schedule) {
        causes.push(invalid("spec.schedule", schedule, &fault));
    }
    let zone = object.pointer("/spec/timeZone").and_then(Value::as_str);
    match zone {
        Some("") => {
            causes.push(invalid("spec.timeZone", "", "timeZone must be nil or non-empty string"));
        }
        Some(zone) if zone.eq_ignore_ascii_case("local") => {
            let detail =
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            causes.push(invalid("spec.timeZone", zone, detail));
        }
        Some(zone) if cron::zone(zone).is_none() => {
            causes.push(invalid("spec.timeZone", zone, &format!("unknown time zone {zone}")));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_small_one_is_filled_and_good() {
        let mut object = json!({"metadata": {"name": "hello"}, "spec": {"schedule": "*/5 * * * *",
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure",
                "containers": [{"name": "a", "image": "a"}]}}}}}});
        defaults(&mut object);
        assert_eq!(validate(&object, None), []);
        assert_eq!(object["spec"]["successfulJobsHistoryLimit"], 3);
        assert_eq!(of_containers(&object, "/image"), "a");
        object["spec"]["schedule"] = "*/5 * *".into();
        object["spec"]["concurrencyPolicy"] = "Maybe".into();
        object["spec"]["jobTemplate"]["spec"]["selector"] = json!({});
        object["metadata"]["name"] = "a".repeat(53).into();
        let fields: Vec<String> = validate(&object, None).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            ["metadata.name", "spec.schedule", "spec.concurrencyPolicy", "spec.jobTemplate.spec.selector"]
        );
    }
}
