//! Who else has a say in writes: admission policies and their bindings.

use super::BASE;
use super::columns::{AGE, NAME, integer, string, text_at};
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::cel::Program;
use crate::json::{child, children, default, items, spec, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::{Value, json};

const GROUP: &str = "admissionregistration.k8s.io";
/// Expressions of one policy.
const MAX_EXPRESSIONS: usize = 128;
const MAX_CONDITIONS: usize = 64;

pub const VALIDATING_ADMISSION_POLICY: Builtin = Builtin {
    group: GROUP,
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        integer("Validations", |policy, _| items(policy, "/spec/validations").len().into()),
        string("ParamKind", |policy, _| {
            let (version, kind) =
                (text(policy, "/spec/paramKind/apiVersion"), text(policy, "/spec/paramKind/kind"));
            if kind.is_empty() { "<unset>".into() } else { format!("{version}/{kind}").into() }
        }),
        AGE,
    ],
    defaults: policy_defaults,
    validate: validate_policy,
    generation: "spec",
    ..BASE
};

pub const VALIDATING_ADMISSION_POLICY_BINDING: Builtin = Builtin {
    group: GROUP,
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    categories: &["api-extensions"],
    namespaced: false,
    columns: &[
        NAME,
        string("PolicyName", |binding, _| text_at(binding, "/spec/policyName")),
        string("ParamRef", |binding, _| {
            let (namespace, name) =
                (text(binding, "/spec/paramRef/namespace"), text(binding, "/spec/paramRef/name"));
            match (namespace, name) {
                ("", "") => "<unset>".into(),
                ("", name) => name.into(),
                (namespace, name) => format!("{namespace}/{name}").into(),
            }
        }),
        AGE,
    ],
    defaults: |object| {
        if let Some(spec) = spec(object)
            && let Some(matched) = spec.get_mut("matchResources").and_then(Value::as_object_mut)
        {
            matched_defaults(matched);
        }
    },
    validate: validate_binding,
    generation: "spec",
    ..BASE
};

fn policy_defaults(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    default(spec, "failurePolicy", "Fail");
    if let Some(matched) = child(spec, "matchConstraints") {
        matched_defaults(matched);
    }
}

fn matched_defaults(matched: &mut crate::json::Fields) {
    default(matched, "matchPolicy", "Equivalent");
    for selector in ["namespaceSelector", "objectSelector"] {
        default(matched, selector, json!({}));
    }
    for rules in ["resourceRules", "excludeResourceRules"] {
        scopes(matched, rules);
    }
}

/// What rules do not say they are about is any scope.
pub(super) fn scopes(fields: &mut crate::json::Fields, rules: &str) {
    for rule in children(fields, rules) {
        default(rule, "scope", "*");
    }
}

/// Names that an expression of a policy may use.
const VARIABLES: [&str; 7] =
    ["object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer"];

fn expression(text: &str, field: String, variables: &[&str], causes: &mut Causes) {
    if text.trim().is_empty() {
        causes.push(required(field, "expression is not specified"));
        return;
    }
    let known: Vec<_> = variables.iter().map(|name| (*name, None)).collect();
    if let Err(why) = Program::compile(text, &known) {
        causes.push(invalid(field, text, &format!("compilation failed: {why}")));
    }
}

fn validate_policy(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let (validations, annotations) = (items(new, "/spec/validations"), items(new, "/spec/auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        causes.push(required("spec.validations", why));
    }
    let all = validations.len() + annotations.len() + items(new, "/spec/variables").len();
    if all > MAX_EXPRESSIONS {
        causes.push(forbidden("spec", &format!("there may be at most {MAX_EXPRESSIONS} expressions")));
        return causes;
    }
    if items(new, "/spec/matchConstraints/resourceRules").is_empty() {
        causes.push(required("spec.matchConstraints.resourceRules", ""));
    }
    let failure = text(new, "/spec/failurePolicy");
    if !["Fail", "Ignore"].contains(&failure) {
        causes.push(not_supported("spec.failurePolicy", failure, &["Fail", "Ignore"]));
    }
    for (i, validation) in validations.iter().enumerate() {
        let at = |field: &str| format!("spec.validations[{i}].{field}");
        expression(text(validation, "/expression"), at("expression"), &VARIABLES, &mut causes);
        let made = text(validation, "/messageExpression");
        if !made.is_empty() {
            expression(made, at("messageExpression"), &VARIABLES, &mut causes);
        }
        const REASONS: [&str; 4] = ["Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge"];
        let reason = text(validation, "/reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            causes.push(not_supported(at("reason"), reason, &REASONS));
        }
    }
    for (i, variable) in items(new, "/spec/variables").iter().enumerate() {
        if text(variable, "/name").is_empty() {
            causes.push(required(format!("spec.variables[{i}].name"), "name is not specified"));
        }
        let at = format!("spec.variables[{i}].expression");
        expression(text(variable, "/expression"), at, &VARIABLES, &mut causes);
    }
    for (i, annotation) in annotations.iter().enumerate() {
        let at = format!("spec.auditAnnotations[{i}].valueExpression");
        expression(text(annotation, "/valueExpression"), at, &VARIABLES, &mut causes);
    }
    conditions(new, "/spec/matchConditions", "spec.matchConditions", &VARIABLES, &mut causes);
    causes
}

/// `matchConditions`, which may use these variables.
pub(super) fn conditions(new: &Value, pointer: &str, field: &str, variables: &[&str], causes: &mut Causes) {
    let all = items(new, pointer);
    if all.len() > MAX_CONDITIONS {
        let message = format!("Too many: {}: must have at most {MAX_CONDITIONS} items", all.len());
        causes.push(crate::Cause { reason: "FieldValueTooMany", message, field: field.to_owned() });
        return;
    }
    for (i, condition) in all.iter().enumerate() {
        let name = text(condition, "/name");
        let at = format!("{field}[{i}].name");
        if name.is_empty() {
            causes.push(required(at, ""));
        } else {
            causes.extend(names::qualified_name(name).iter().map(|fault| invalid(&at, name, fault)));
        }
        let at = format!("{field}[{i}].expression");
        expression(text(condition, "/expression"), at, variables, causes);
    }
}

fn validate_binding(new: &Value, old: Option<&Value>) -> Causes {
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let policy = text(new, "/spec/policyName");
    if policy.is_empty() {
        causes.push(required("spec.policyName", ""));
    } else {
        causes.extend(
            names::dns_subdomain(policy).iter().map(|fault| invalid("spec.policyName", policy, fault)),
        );
    }
    let actions: Vec<&str> = items(new, "/spec/validationActions")
        .iter()
        .map(|action| action.as_str().unwrap_or_default())
        .collect();
    if actions.is_empty() {
        causes.push(required("spec.validationActions", "at least one validation action is required"));
    }
    for (i, action) in actions.iter().enumerate().filter(|(_, action)| !ACTIONS.contains(action)) {
        causes.push(not_supported(format!("spec.validationActions[{i}]"), *action, &ACTIONS));
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        causes.push(invalid("spec.validationActions", new["spec"]["validationActions"].clone(), why));
    }
    let by = &new["spec"]["paramRef"];
    if by.is_object() {
        let (name, selector) = (!text(by, "/name").is_empty(), by["selector"].is_object());
        if name == selector {
            let why = "one of name or selector must be specified, and not both";
            causes.push(required("spec.paramRef.name", why));
        }
        let action = text(by, "/parameterNotFoundAction");
        if !["Allow", "Deny"].contains(&action) {
            causes.push(required("spec.paramRef.parameterNotFoundAction", ""));
        }
    }
    causes
}
