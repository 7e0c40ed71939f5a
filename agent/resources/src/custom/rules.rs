//! `x-kubernetes-validations`: rules of a schema, in CEL.

use super::schema::{ListType, Schema};
use crate::Cause;
use crate::cause::{Causes, invalid};
use crate::cel::{Budget, Cel, Error, Program};
use crate::json::{flag, items, text};
use serde_json::Value;
use std::collections::HashMap;

/// Rules at one place of a schema.
const MAX_RULES: usize = 100;
/// What a message made by an expression may have.
const MAX_MESSAGE: usize = 5120;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    program: Program,
    message: String,
    /// Makes the message.
    expression: Option<Program>,
    reason: &'static str,
    /// Where the fault is told, below the value.
    path: String,
    /// About a change: it says `oldSelf`.
    transition: bool,
    /// It is also asked when there is nothing old; `oldSelf` may then be nothing.
    optional: bool,
}

impl Rule {
    /// The rules of a schema whose other parts are read. Those that cannot be read are left out: they were refused.
    pub(crate) fn all(schema: &Schema, written: &Value) -> Vec<Self> {
        let rules = items(written, "/x-kubernetes-validations").iter().take(MAX_RULES);
        rules.filter_map(|rule| Self::read(schema, rule).ok()).collect()
    }

    fn read(schema: &Schema, rule: &Value) -> Result<Self, (&'static str, String)> {
        let optional = flag(rule, "/optionalOldSelf");
        let old = Some(schema).filter(|_| !optional);
        let compile = |field: &'static str| {
            let variables = [("self", Some(schema)), ("oldSelf", old)];
            Program::compile(text(rule, &format!("/{field}")), &variables)
                .map_err(|why| (field, format!("compilation failed: {why}")))
        };
        let program = compile("rule")?;
        let expression = text(rule, "/messageExpression");
        let expression = if expression.is_empty() { None } else { Some(compile("messageExpression")?) };
        Ok(Self {
            transition: program.uses("oldSelf"),
            program,
            message: text(rule, "/message").to_owned(),
            expression,
            reason: match text(rule, "/reason") {
                "FieldValueForbidden" => "FieldValueForbidden",
                "FieldValueRequired" => "FieldValueRequired",
                "FieldValueDuplicate" => "FieldValueDuplicate",
                _ => "FieldValueInvalid",
            },
            path: text(rule, "/fieldPath").to_owned(),
            optional,
        })
    }

    /// What is told when it does not hold.
    fn told(&self) -> String {
        if self.message.is_empty() {
            format!("failed rule: {}", self.program.text().trim().replace('\n', " "))
        } else {
            self.message.trim().to_owned()
        }
    }

    /// A fault at a value of this type.
    fn cause(&self, path: &str, kind: &str, message: &str) -> Cause {
        let field = format!("{path}{}", self.path);
        let field = field.trim_start_matches('.').to_owned();
        let message = match self.reason {
            "FieldValueForbidden" => format!("Forbidden: {message}"),
            "FieldValueRequired" => format!("Required value: {message}"),
            "FieldValueDuplicate" => format!("Duplicate value: {kind:?}"),
            _ => format!("Invalid value: {kind:?}: {message}"),
        };
        Cause { reason: self.reason, message, field }
    }
}

/// What is wrong with the rules of a node when a definition is written.
pub(crate) fn check(written: &Value, path: &str) -> Causes {
    let rules = items(written, "/x-kubernetes-validations");
    let mut causes = Causes::new();
    if rules.is_empty() {
        return causes;
    }
    let at = format!("{path}.x-kubernetes-validations");
    if rules.len() > MAX_RULES {
        return vec![crate::cause::forbidden(at, &format!("there may be at most {MAX_RULES}"))];
    }
    let schema = Schema::read(written);
    for (i, rule) in rules.iter().enumerate() {
        let at = |field: &str| format!("{at}[{i}].{field}");
        if text(rule, "/rule").trim().is_empty() {
            causes.push(crate::cause::required(at("rule"), "rule is not specified"));
            continue;
        }
        if let Err((field, why)) = Rule::read(&schema, rule) {
            causes.push(invalid(at(field), text(rule, &format!("/{field}")), &why));
        }
        let message = text(rule, "/message");
        if message.contains('\n') {
            causes.push(invalid(at("message"), message, "message must not contain line breaks"));
        }
        const REASONS: [&str; 4] =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        let reason = text(rule, "/reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            causes.push(crate::cause::not_supported(at("reason"), reason, &REASONS));
        }
        let own = text(rule, "/fieldPath");
        if !own.is_empty() && !leads(written, own) {
            causes.push(invalid(at("fieldPath"), own, "fieldPath must be a valid path"));
        }
    }
    causes
}

/// Whether a path like `.a.b` leads somewhere in a schema.
fn leads(schema: &Value, path: &str) -> bool {
    let steps = path.strip_prefix('.').map(|path| path.split('.'));
    let step = |schema: &'_ Value, name: &str| {
        let name = name.split('[').next().unwrap_or_default();
        schema
            .get("properties")
            .and_then(|p| p.get(name))
            .or_else(|| schema.get("additionalProperties"))
            .cloned()
    };
    steps
        .is_some_and(|mut steps| steps.try_fold(schema.clone(), |schema, name| step(&schema, name)).is_some())
}

/// All rules that an object does not keep; `old`: as it was before.
pub(crate) fn validate(schema: &Schema, new: &Value, old: Option<&Value>) -> Causes {
    if !schema.has_rules {
        return Causes::new();
    }
    let mut check = Check { causes: Causes::new(), budget: Budget::default(), over: false };
    check.value(schema, new, old, "");
    check.causes
}

struct Check {
    causes: Causes,
    budget: Budget,
    /// The budget is spent: no more rules are asked.
    over: bool,
}

impl Check {
    fn value(&mut self, schema: &Schema, new: &Value, old: Option<&Value>, path: &str) {
        if !schema.has_rules || self.over || self.causes.len() > MAX_RULES {
            return;
        }
        if !(new.is_null() && schema.nullable) {
            schema.rules.iter().for_each(|rule| self.rule(rule, schema, new, old, path));
        }
        match new {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let Some(inner) = schema.field(name) else { continue };
                    let path = if path.is_empty() {
                        name.clone()
                    } else if schema.properties.contains_key(name) {
                        format!("{path}.{name}")
                    } else {
                        format!("{path}[{name}]")
                    };
                    self.value(inner, value, old.and_then(|old| old.get(name)), &path);
                }
            }
            Value::Array(values) => {
                let Some(inner) = &schema.items else { return };
                let before = by_key(schema, old);
                for (i, value) in values.iter().enumerate() {
                    let old = key(schema, value).and_then(|key| before.get(&key).copied());
                    self.value(inner, value, old, &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, rule: &Rule, schema: &Schema, new: &Value, old: Option<&Value>, path: &str) {
        if self.over || (rule.transition && old.is_none() && !rule.optional) {
            return;
        }
        let kind = schema.kind.map_or("", super::schema::Type::name);
        let mut variables = vec![("self", Cel::of(new, Some(schema)))];
        let old = old.map(|old| Cel::of(old, Some(schema)));
        if rule.optional {
            variables.push(("oldSelf", Cel::maybe(old)));
        } else {
            variables.extend(old.map(|old| ("oldSelf", old)));
        }
        let why = match rule.program.run(&variables, &mut self.budget) {
            Ok(Cel::Bool(true)) => return,
            Ok(Cel::Bool(false)) => self.message(rule, &variables),
            Ok(_) => format!("{}: the rule is no truth", rule.told()),
            Err(Error::TooCostly) => {
                self.over = true;
                "validation failed due to running out of cost budget, no further validation rules will be run"
                    .to_owned()
            }
            Err(Error::Fault(why)) => format!("{why} evaluating rule: {}", rule.told()),
        };
        self.causes.push(rule.cause(path, kind, &why));
    }

    fn message(&mut self, rule: &Rule, variables: &[(&str, Cel<'_>)]) -> String {
        let made = rule.expression.as_ref().map(|program| program.run(variables, &mut self.budget));
        match made {
            Some(Ok(Cel::Text(text)))
                if !text.trim().is_empty() && !text.contains('\n') && text.len() <= MAX_MESSAGE =>
            {
                text.trim().to_owned()
            }
            _ => rule.told(),
        }
    }
}

/// The key of an item in a list of which items can be told apart.
fn key(schema: &Schema, item: &Value) -> Option<String> {
    let ListType::Map(keys) = &schema.list else { return None };
    Some(super::validate::key_of(schema, keys, item).to_string())
}

fn by_key<'v>(schema: &Schema, old: Option<&'v Value>) -> HashMap<String, &'v Value> {
    let old = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    old.iter().filter_map(|item| Some((key(schema, item)?, item))).collect()
}
