//! ValidatingAdmissionPolicies: rules in CEL over whole requests. Pure but for reading the store.

use crate::auth::User;
use crate::engine::Engine;
use crate::object::{self, list, name, text};
use crate::status::{Result, Status};
use crate::webhook::Deadline;
use resources::Descriptor;
use resources::cel::{Budget, Cel, Error, Program};
use resources::labels::Selector;
use serde_json::{Value, json};

pub(crate) const GROUP: &str = "admissionregistration.k8s.io";
/// Parameters that one binding may lead to.
const MAX_PARAMS: usize = 100;

/// A write that others may have a say in.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    pub operation: &'static str,
    pub kind: &'a Descriptor,
    /// `status`, or nothing.
    pub subresource: &'a str,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
    pub by: &'a User,
    /// By which name the fields that are written are managed.
    pub manager: &'a str,
    pub dry_run: bool,
    /// Group, version and kind of what `object` is, if it is not of `kind`: a Scale, a Binding.
    pub shown: Option<[&'static str; 3]>,
    pub until: Deadline,
}

impl Request<'_> {
    fn resource(&self) -> String {
        match self.subresource {
            "" => self.kind.plural.to_string(),
            sub => format!("{}/{sub}", self.kind.plural),
        }
    }

    /// As an AdmissionRequest tells it.
    fn told(&self) -> Value {
        self.told_as(self.kind)
    }

    /// The same, when another kind was asked for, of which this one is another version.
    pub fn told_as(&self, asked: &Descriptor) -> Value {
        let kind = |kind: &Descriptor| match self.shown {
            Some([group, version, kind]) => json!({"group": group, "version": version, "kind": kind}),
            None => json!({"group": kind.group, "version": kind.version, "kind": kind.kind}),
        };
        let resource = |kind: &Descriptor| json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
        let sub = self.subresource;
        json!({
            "kind": kind(self.kind), "resource": resource(self.kind), "subResource": sub,
            "requestKind": kind(asked), "requestResource": resource(asked), "requestSubResource": sub,
            "name": self.name, "namespace": self.namespace.unwrap_or_default(), "operation": self.operation,
            "userInfo": {"username": self.by.name, "uid": self.by.uid.as_deref().unwrap_or_default(),
                "groups": self.by.groups, "extra": self.by.extra},
            "dryRun": self.dry_run, "options": self.options(),
        })
    }

    fn options(&self) -> Value {
        let kind = match self.operation {
            "CREATE" => "CreateOptions",
            "UPDATE" => "UpdateOptions",
            "DELETE" => "DeleteOptions",
            _ => return Value::Null,
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !self.manager.is_empty() {
            options["fieldManager"] = self.manager.into();
        }
        options
    }

    /// Whether one of these rules is about this request.
    pub fn matches_rules(&self, rules: &[Value]) -> bool {
        let resource = self.resource();
        rules.iter().any(|rule| {
            let one = |field: &str, wanted: &str| {
                list(rule, field).iter().filter_map(Value::as_str).any(|own| own == "*" || own == wanted)
            };
            let names = list(rule, "/resourceNames");
            one("/operations", self.operation)
                && one("/apiGroups", &self.kind.group)
                && one("/apiVersions", &self.kind.version)
                && list(rule, "/resources")
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|own| is_resource(own, &resource))
                && (names.is_empty() || names.iter().any(|own| own == self.name))
                && match text(rule, "/scope") {
                    "Cluster" => !self.kind.namespaced,
                    "Namespaced" => self.kind.namespaced,
                    _ => true,
                }
        })
    }

    /// Whether the selectors of a matcher choose this request.
    pub fn is_selected(&self, matcher: &Value, namespace: Option<&Value>) -> bool {
        let of = |object: Option<&Value>, field: &str| {
            let selector = &matcher[field];
            if selector.as_object().is_none_or(serde_json::Map::is_empty) {
                return true;
            }
            let labels = object.and_then(|object| object.pointer("/metadata/labels"));
            Selector::from_label_selector(selector).is_ok_and(|selector| selector.matches(labels))
        };
        let own = self.object.or(self.old);
        let home = if self.kind.plural == "namespaces" { own } else { namespace };
        (home.is_none() || of(home, "namespaceSelector"))
            && (of(self.object, "objectSelector") && self.object.is_some()
                || of(self.old, "objectSelector") && self.old.is_some())
    }
}

/// `pods`, `*`, `pods/*`, `*/scale`, `*/*`.
fn is_resource(rule: &str, resource: &str) -> bool {
    let (own, own_sub) = rule.split_once('/').unwrap_or((rule, ""));
    let (plural, sub) = resource.split_once('/').unwrap_or((resource, ""));
    (own == "*" || own == plural) && (own_sub == sub || own_sub == "*")
}

/// What the server itself and these kinds do, nobody has a say in.
pub(crate) fn is_exempt(request: &Request<'_>) -> bool {
    request.by.name.is_empty() || request.kind.group == GROUP
}

/// A policy with one of its bindings, and what it decides by.
struct Case<'a> {
    policy: &'a Value,
    programs: &'a Programs,
    binding: &'a Value,
    request: &'a Request<'a>,
    told: &'a Value,
    namespace: Option<&'a Value>,
}

impl Engine {
    /// Asks the policies; gives what they warn of.
    pub fn ask_policies(&self, request: &Request<'_>) -> Result<Vec<String>> {
        if is_exempt(request) || !self.admits("ValidatingAdmissionPolicy") {
            return Ok(Vec::new());
        }
        let bindings = self.all(GROUP, "validatingadmissionpolicybindings", "");
        if bindings.is_empty() {
            return Ok(Vec::new());
        }
        let namespace = request.namespace.and_then(|name| self.one("", "namespaces", "", name));
        let (told, mut warnings) = (request.told(), Vec::new());
        for policy in self.all(GROUP, "validatingadmissionpolicies", "") {
            let matcher = &policy["spec"]["matchConstraints"];
            if !request.is_about(matcher, namespace.as_ref()) {
                continue;
            }
            let programs = Programs::read(&policy["spec"]);
            for binding in bindings.iter().filter(|b| text(b, "/spec/policyName") == name(&policy)) {
                let own = &binding["spec"]["matchResources"];
                if own.is_object() && !request.is_limited_to(own, namespace.as_ref()) {
                    continue;
                }
                let namespace = namespace.as_ref();
                let case =
                    Case { policy: &policy, programs: &programs, binding, request, told: &told, namespace };
                self.ask(&case, &mut warnings)?;
            }
        }
        Ok(warnings)
    }

    /// Asks one policy as one of its bindings wants it.
    fn ask(&self, case: &Case<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let params = match self.params(case) {
            Ok(params) => params,
            Err(why) => return case.failed(&why, warnings),
        };
        for params in params {
            for (why, reason) in case.faults(&params) {
                case.tell(&why, reason, warnings)?;
            }
        }
        Ok(())
    }

    /// The parameters that a binding leads to; `null` if the policy takes none.
    fn params(&self, case: &Case<'_>) -> std::result::Result<Vec<Value>, String> {
        let (wanted, by) = (&case.policy["spec"]["paramKind"], &case.binding["spec"]["paramRef"]);
        if !wanted.is_object() || !by.is_object() {
            return Ok(vec![Value::Null]);
        }
        let (version, kind) = (text(wanted, "/apiVersion"), text(wanted, "/kind"));
        let catalog = self.catalog();
        let found = catalog.iter().find(|own| own.kind == kind && own.api_version() == version);
        let found = found.ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{version}, Kind={kind}'")
        })?;
        let own = text(by, "/namespace");
        let namespace = match (found.namespaced, own.is_empty()) {
            (false, _) => None,
            (true, false) => Some(own),
            (true, true) => case.request.namespace,
        };
        let prefix = object::prefix(found, namespace);
        let selector = Selector::from_label_selector(&by["selector"]).map_err(|e| e.to_string())?;
        let records = self.kv(found).list(&prefix, None, 0).records;
        let all = records.iter().filter_map(|record| object::load(found, record).ok());
        let params: Vec<Value> = match text(by, "/name") {
            "" => all.filter(|o| selector.matches(o.pointer("/metadata/labels"))).take(MAX_PARAMS).collect(),
            wanted => all.filter(|o| object::name(o) == wanted).collect(),
        };
        if params.is_empty() && text(by, "/parameterNotFoundAction") == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
        }
        Ok(params)
    }
}

impl Request<'_> {
    /// Whether a policy's constraints, which name resources, are about this request.
    fn is_about(&self, matcher: &Value, namespace: Option<&Value>) -> bool {
        self.matches_rules(list(matcher, "/resourceRules")) && self.is_limited_to(matcher, namespace)
    }

    /// The same for a binding's, which may leave the resources to the policy.
    fn is_limited_to(&self, matcher: &Value, namespace: Option<&Value>) -> bool {
        let rules = list(matcher, "/resourceRules");
        (rules.is_empty() || self.matches_rules(rules))
            && !self.matches_rules(list(matcher, "/excludeResourceRules"))
            && self.is_selected(matcher, namespace)
    }
}

impl Case<'_> {
    /// All that is wrong, with the reasons that validations give.
    fn faults(&self, params: &Value) -> Vec<(String, &str)> {
        let (spec, programs) = (&self.policy["spec"], self.programs);
        let mut budget = Budget::default();
        let null = Value::Null;
        let mut names = vec![
            ("object", Cel::of(self.request.object.unwrap_or(&null), None)),
            ("oldObject", Cel::of(self.request.old.unwrap_or(&null), None)),
            ("request", Cel::of(self.told, None)),
            ("params", Cel::of(params, None)),
            ("namespaceObject", Cel::of(self.namespace.unwrap_or(&null), None)),
        ];
        for (condition, program) in list(spec, "/matchConditions").iter().zip(&programs.conditions) {
            match run(program, &names, &mut budget) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => return Vec::new(),
                Err(_) if self.ignores() => return Vec::new(),
                Err(why) => {
                    let name = text(condition, "/name");
                    return vec![(format!("match condition '{name}' failed: {why}"), "Invalid")];
                }
            }
        }
        let mut made = Vec::new();
        names.push(("variables", Cel::map(Vec::new())));
        for (variable, program) in list(spec, "/variables").iter().zip(&programs.variables) {
            if let Ok(value) = run(program, &names, &mut budget) {
                made.push((text(variable, "/name"), value));
                names.pop();
                names.push(("variables", Cel::map(made.clone())));
            }
        }
        let mut faults = Vec::new();
        for (validation, program) in list(spec, "/validations").iter().zip(&programs.validations) {
            let reason = text(validation, "/reason");
            match run(&program.0, &names, &mut budget) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    let own = program.1.as_ref().map(|program| run(program, &names, &mut budget));
                    let why = match (own, text(validation, "/message")) {
                        (Some(Ok(Cel::Text(text))), _) if !text.trim().is_empty() => text.trim().to_owned(),
                        (_, "") => format!("failed expression: {}", text(validation, "/expression").trim()),
                        (_, message) => message.trim().to_owned(),
                    };
                    faults.push((why, reason));
                }
                Err(_) if self.ignores() => {}
                Err(why) => {
                    let expression = text(validation, "/expression").trim();
                    faults.push((format!("expression '{expression}' resulted in error: {why}"), "Invalid"));
                }
            }
        }
        faults
    }

    fn ignores(&self) -> bool {
        text(self.policy, "/spec/failurePolicy") == "Ignore"
    }

    /// The policy itself cannot be asked.
    fn failed(&self, why: &str, warnings: &mut Vec<String>) -> Result<()> {
        if self.ignores() {
            return Ok(());
        }
        self.tell(&format!("failed to configure binding: {why}"), "Invalid", warnings)
    }

    /// Does with a fault what the binding says.
    fn tell(&self, why: &str, reason: &str, warnings: &mut Vec<String>) -> Result<()> {
        let (policy, binding) = (name(self.policy), name(self.binding));
        let acts =
            |action: &str| list(self.binding, "/spec/validationActions").iter().any(|own| own == action);
        if acts("Warn") {
            warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {why}"
            ));
        }
        if !acts("Deny") {
            return Ok(());
        }
        let message =
            format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {why}");
        let kind = self.request.kind;
        Err(Status::refused(&kind.group, &kind.plural, self.request.name, &message, reason))
    }
}

/// An expression, or why it cannot be read.
type Compiled = std::result::Result<Program, String>;

/// The expressions of a policy, read. Those that cannot be read were refused when they came.
struct Programs {
    conditions: Vec<Compiled>,
    variables: Vec<Compiled>,
    validations: Vec<(Compiled, Option<Compiled>)>,
}

impl Programs {
    fn read(spec: &Value) -> Self {
        let names: Vec<_> =
            ["object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer"]
                .map(|name| (name, None))
                .to_vec();
        let compile = |text: &str| Program::compile(text, &names);
        let all =
            |pointer: &str| list(spec, pointer).iter().map(|own| compile(text(own, "/expression"))).collect();
        let validations = list(spec, "/validations").iter().map(|own| {
            let message = Some(text(own, "/messageExpression")).filter(|text| !text.is_empty());
            (compile(text(own, "/expression")), message.map(compile))
        });
        Self {
            conditions: all("/matchConditions"),
            variables: all("/variables"),
            validations: validations.collect(),
        }
    }
}

fn run<'v>(
    program: &'v Compiled,
    names: &[(&'v str, Cel<'v>)],
    budget: &mut Budget,
) -> std::result::Result<Cel<'v>, String> {
    let program = program.as_ref().map_err(Clone::clone)?;
    program.run(names, budget).map_err(|error: Error| error.to_string())
}

/// Whether a match condition holds; what has no value is told.
pub(crate) fn condition_holds<'v>(
    expression: &str,
    names: &[(&'v str, Cel<'v>)],
    budget: &mut Budget,
) -> std::result::Result<bool, String> {
    let known: Vec<_> = ["object", "oldObject", "request", "authorizer"].map(|name| (name, None)).to_vec();
    let program = Program::compile(expression, &known)?;
    let value = program.run(names, budget).map_err(|error| error.to_string())?;
    Ok(matches!(value, Cel::Bool(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_matched_with_their_parts() {
        for (rule, resource, expected) in [
            ("pods", "pods", true),
            ("pods", "pods/status", false),
            ("pods/*", "pods/status", true),
            ("*", "pods", true),
            ("*", "pods/status", false),
            ("*/*", "pods/status", true),
            ("*/*", "pods", true),
            ("*/scale", "deployments/scale", true),
            ("*/scale", "deployments", false),
        ] {
            assert_eq!(is_resource(rule, resource), expected, "{rule} {resource}");
        }
    }
}
