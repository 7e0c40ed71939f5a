//! What can be said of an expression before it is evaluated: names that do not exist, fields that a schema does not
//! have.

use super::eval::{SPACES, type_of};
use super::lex::Fault;
use super::parse::{Each, Expr, Node};
use super::value::unescaped;
use crate::custom::{Additional, Schema, Type};

/// Names and what is known of them, the innermost last.
type Names<'a> = Vec<(&'a str, Option<&'a Schema>)>;

/// Checks an expression that may use these variables.
pub fn check<'a>(root: &'a Expr, variables: &[(&'a str, Option<&'a Schema>)]) -> Result<(), Fault> {
    walk(root, &mut variables.to_vec()).map(|_| ())
}

/// Whether a name is used.
pub fn uses(expr: &Expr, name: &str) -> bool {
    let mut found = matches!(&expr.node, Node::Name(own) if own == name);
    each_inner(expr, &mut |inner| found = found || uses(inner, name));
    found
}

/// Shows the nodes just below one.
pub fn each_inner<'a>(expr: &'a Expr, see: &mut dyn FnMut(&'a Expr)) {
    match &expr.node {
        Node::List(items) => items.iter().for_each(see),
        Node::Map(entries) => entries.iter().for_each(|(key, value)| {
            see(key);
            see(value);
        }),
        Node::Select { of, .. } | Node::Has { of, .. } => see(of),
        Node::Index { of, by, .. } => {
            see(of);
            see(by);
        }
        Node::Call { target, arguments, .. } => {
            target.iter().for_each(|target| see(target));
            arguments.iter().for_each(see);
        }
        Node::Not(inner) | Node::Negative(inner) => see(inner),
        Node::Two { left, right, .. } => {
            see(left);
            see(right);
        }
        Node::Choice { condition, yes, no } => [condition, yes, no].into_iter().for_each(|inner| see(inner)),
        Node::Each { of, filter, body, .. } => {
            see(of);
            filter.iter().for_each(|filter| see(filter));
            see(body);
        }
        Node::Bind { value, body, .. } => {
            see(value);
            see(body);
        }
        _ => {}
    }
}

/// Checks, and gives the schema of the value as far as it is known.
fn walk<'a>(expr: &'a Expr, names: &mut Names<'a>) -> Result<Option<&'a Schema>, Fault> {
    match &expr.node {
        Node::Name(name) => match names.iter().rev().find(|(own, _)| own == name) {
            Some((_, schema)) => Ok(*schema),
            None if type_of(name).is_some() => Ok(None),
            None => Err((expr.at, format!("undeclared reference to '{name}' (in container '')"))),
        },
        Node::Select { of, field, .. } | Node::Has { of, field } => {
            let of = walk(of, names)?;
            select(expr.at, of, field)
        }
        Node::Index { of, by, .. } => {
            let of = walk(of, names)?;
            walk(by, names)?;
            Ok(of.and_then(inside))
        }
        Node::Call { target, name, arguments } => {
            let space =
                |target: &Expr| matches!(&target.node, Node::Name(space) if SPACES.contains(&space.as_str()));
            if let Some(target) = target.as_deref().filter(|target| !space(target)) {
                walk(target, names)?;
            }
            for argument in arguments {
                walk(argument, names)?;
            }
            if target.is_none() && !KNOWN.contains(&name.as_str()) {
                return Err((expr.at, format!("undeclared reference to '{name}' (in container '')")));
            }
            Ok(None)
        }
        Node::Each { what, of, names: own, filter, body } => {
            let schema = walk(of, names)?;
            let before = names.len();
            let is_map = schema.is_some_and(|schema| schema.items.is_none());
            for (i, name) in own.iter().enumerate() {
                let item = if i + 1 == own.len() && !is_map { schema.and_then(inside) } else { None };
                names.push((name, item));
            }
            let inner = filter.iter().map(|filter| walk(filter, names)).find_map(Result::err);
            let result = match inner {
                Some(error) => Err(error),
                None => walk(body, names),
            };
            names.truncate(before);
            result.map(|_| schema.filter(|_| *what == Each::Filter && !is_map))
        }
        Node::Bind { name, value, body } => {
            let schema = walk(value, names)?;
            names.push((name, schema));
            let result = walk(body, names);
            names.pop();
            result
        }
        _ => {
            let mut inner = Vec::new();
            each_inner(expr, &mut |expr| inner.push(expr));
            for expr in inner {
                walk(expr, names)?;
            }
            Ok(None)
        }
    }
}

/// Functions that are called without a value before a dot.
const KNOWN: [&str; 20] = [
    "size",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "dyn",
    "type",
    "timestamp",
    "duration",
    "matches",
    "isQuantity",
    "quantity",
    "isURL",
    "url",
    "isIP",
    "ip",
    "isCIDR",
    "cidr",
];

fn select<'a>(at: usize, of: Option<&'a Schema>, field: &str) -> Result<Option<&'a Schema>, Fault> {
    let Some(of) = of else { return Ok(None) };
    if let Some(own) = of.properties.get(field).or_else(|| of.properties.get(&unescaped(field))) {
        return Ok(Some(own));
    }
    match &of.additional {
        Some(Additional::Of(of)) => Ok(Some(of)),
        Some(Additional::Any) => Ok(None),
        None if of.kind == Some(Type::Object)
            && !of.preserve
            && !of.properties.is_empty()
            && !of.embedded =>
        {
            Err((at, format!("undefined field '{field}'")))
        }
        None => Ok(None),
    }
}

/// The schema of what is in a list or a map.
fn inside(of: &Schema) -> Option<&Schema> {
    match (&of.items, &of.additional) {
        (Some(items), _) => Some(items),
        (None, Some(Additional::Of(of))) => Some(of),
        _ => None,
    }
}
