//! From a tree to its value.

use super::parse::{Each, Expr, Node};
use super::value::{Cel, fault};
use super::{Error, Variables, lists, net, strings, time};
use std::cmp::Ordering;
use std::rc::Rc;

type Result<T> = std::result::Result<T, Error>;

/// One evaluation.
pub struct Eval<'a, 'v> {
    variables: &'a Variables<'v>,
    /// Names that macros bind, the innermost last.
    bound: Vec<(&'v str, Cel<'v>)>,
    left: u64,
}

impl<'a, 'v> Eval<'a, 'v> {
    pub fn new(variables: &'a Variables<'v>, budget: u64) -> Self {
        Self { variables, bound: Vec::new(), left: budget }
    }

    /// What of the budget was not spent.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Pays.
    pub fn pay(&mut self, cost: u64) -> Result<()> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Error::TooCostly)
            }
        }
    }

    pub fn run(&mut self, expr: &'v Expr) -> Result<Cel<'v>> {
        self.pay(1)?;
        Ok(match &expr.node {
            Node::Null => Cel::Null,
            Node::Bool(b) => Cel::Bool(*b),
            Node::Int(n) => Cel::Int(*n),
            Node::Uint(n) => Cel::Uint(*n),
            Node::Double(n) => Cel::Double(*n),
            Node::Text(text) => Cel::text(text.as_str()),
            Node::Bytes(bytes) => Cel::Bytes(Rc::new(bytes.clone())),
            Node::Name(name) => self.name(name)?,
            Node::List(items) => Cel::list(items.iter().map(|item| self.run(item)).collect::<Result<_>>()?),
            Node::Map(entries) => {
                let pair = |(key, value): &'v (Expr, Expr)| Ok((self.run(key)?, self.run(value)?));
                Cel::Map(Rc::new(entries.iter().map(pair).collect::<Result<_>>()?))
            }
            Node::Select { of, field, maybe } => self.select(of, field, *maybe)?,
            Node::Has { of, field } => Cel::Bool(self.run(of)?.field(field)?.is_some()),
            Node::Index { of, by, maybe } => self.index(of, by, *maybe)?,
            Node::Call { target, name, arguments } => self.call(target.as_deref(), name, arguments)?,
            Node::Not(inner) => Cel::Bool(!truth(&self.run(inner)?)?),
            Node::Negative(inner) => negative(&self.run(inner)?)?,
            Node::Two { sign, left, right } => self.two(sign, left, right)?,
            Node::Choice { condition, yes, no } => {
                let which = if truth(&self.run(condition)?)? { yes } else { no };
                self.run(which)?
            }
            Node::Each { what, of, names, filter, body } => {
                self.each(*what, of, names, filter.as_deref(), body)?
            }
            Node::Bind { name, value, body } => {
                let value = self.run(value)?;
                self.with(&[(name, value)], body)?
            }
        })
    }

    fn name(&self, name: &str) -> Result<Cel<'v>> {
        let bound = self.bound.iter().rev().find(|(own, _)| *own == name);
        match bound.or_else(|| self.variables.iter().find(|(own, _)| *own == name)) {
            Some((_, value)) => Ok(value.clone()),
            None => match type_of(name) {
                Some(name) => Ok(Cel::Type(name)),
                None => fault(format!("undeclared reference to '{name}'")),
            },
        }
    }

    fn with(&mut self, names: &[(&'v String, Cel<'v>)], body: &'v Expr) -> Result<Cel<'v>> {
        let before = self.bound.len();
        self.bound.extend(names.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let result = self.run(body);
        self.bound.truncate(before);
        result
    }

    fn select(&mut self, of: &'v Expr, field: &'v str, maybe: bool) -> Result<Cel<'v>> {
        let of = self.run(of)?;
        let found = match &of {
            // A field of nothing is nothing.
            Cel::Maybe(_) => return Ok(Cel::maybe(of.field(field)?)),
            _ => of.field(field)?,
        };
        match found {
            found if maybe => Ok(Cel::maybe(found)),
            Some(value) => Ok(value),
            None => fault(format!("no such key: {field}")),
        }
    }

    fn index(&mut self, of: &'v Expr, by: &'v Expr, maybe: bool) -> Result<Cel<'v>> {
        let (of, by) = (self.run(of)?, self.run(by)?);
        let found = of.at(&by)?;
        match found {
            found if maybe || matches!(of, Cel::Maybe(_)) => Ok(Cel::maybe(found)),
            Some(value) => Ok(value),
            None if of.is_list() => fault(format!("index out of bounds: {}", strings::shown(&by))),
            None => fault(format!("no such key: {}", strings::shown(&by))),
        }
    }

    fn two(&mut self, sign: &str, left: &'v Expr, right: &'v Expr) -> Result<Cel<'v>> {
        if matches!(sign, "&&" | "||") {
            return self.junction(sign == "||", left, right);
        }
        let (a, b) = (self.run(left)?, self.run(right)?);
        self.pay(a.weight().min(b.weight()))?;
        Ok(match sign {
            "==" => Cel::Bool(self.equal(&a, &b)?),
            "!=" => Cel::Bool(!self.equal(&a, &b)?),
            "in" => Cel::Bool(self.contains(&b, &a)?),
            "<" | "<=" | ">" | ">=" => {
                let Some(order) = a.order(&b) else { return fault("no such overload") };
                Cel::Bool(match sign {
                    "<" => order == Ordering::Less,
                    "<=" => order != Ordering::Greater,
                    ">" => order == Ordering::Greater,
                    _ => order != Ordering::Less,
                })
            }
            "+" => self.plus(a, b)?,
            _ => arithmetic(sign, &a, &b)?,
        })
    }

    /// `&&` and `||`: one side can decide although the other has no value.
    fn junction(&mut self, decides: bool, left: &'v Expr, right: &'v Expr) -> Result<Cel<'v>> {
        let first = self.run(left).and_then(|value| truth(&value));
        if first == Ok(decides) || first == Err(Error::TooCostly) {
            return first.map(Cel::Bool);
        }
        let second = self.run(right).and_then(|value| truth(&value));
        match (first, second) {
            (_, Ok(value)) if value == decides => Ok(Cel::Bool(decides)),
            (_, Err(Error::TooCostly)) => Err(Error::TooCostly),
            (Err(error), _) => Err(error),
            (_, second) => second.map(Cel::Bool),
        }
    }

    /// Whether two values are equal; big ones cost.
    pub fn equal(&mut self, a: &Cel<'v>, b: &Cel<'v>) -> Result<bool> {
        self.pay(size(a, 0).min(size(b, 0)))?;
        Ok(a.same(b))
    }

    pub fn contains(&mut self, of: &Cel<'v>, value: &Cel<'v>) -> Result<bool> {
        if of.is_map() {
            return Ok(of.at(value)?.is_some());
        }
        for item in of.items()? {
            if self.equal(&item, value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn plus(&mut self, a: Cel<'v>, b: Cel<'v>) -> Result<Cel<'v>> {
        self.pay(a.weight() + b.weight())?;
        match (&a, &b) {
            (Cel::Text(a), Cel::Text(b)) => Ok(Cel::text(format!("{a}{b}"))),
            (Cel::Bytes(a), Cel::Bytes(b)) => Ok(Cel::Bytes(Rc::new([a.as_slice(), b.as_slice()].concat()))),
            _ if a.is_list() && b.is_list() => Ok(Cel::list([a.items()?, b.items()?].concat())),
            _ => arithmetic("+", &a, &b),
        }
    }

    fn each(
        &mut self,
        what: Each,
        of: &'v Expr,
        names: &'v [String],
        filter: Option<&'v Expr>,
        body: &'v Expr,
    ) -> Result<Cel<'v>> {
        let of = self.run(of)?;
        self.pay(of.weight())?;
        let (mut made, mut good, mut failed) = (Vec::new(), 0, None);
        for (i, item) in of.items()?.into_iter().enumerate() {
            self.pay(1)?;
            let bind: Vec<(&'v String, Cel<'v>)> = match names {
                [one] => vec![(one, item.clone())],
                [key, value] if of.is_map() => {
                    vec![(key, item.clone()), (value, of.at(&item)?.unwrap_or(Cel::Null))]
                }
                [index, value] => {
                    vec![(index, Cel::Int(i64::try_from(i).unwrap_or(i64::MAX))), (value, item.clone())]
                }
                _ => return fault("no such overload"),
            };
            if let Some(filter) = filter
                && !truth(&self.with(&bind, filter)?)?
            {
                continue;
            }
            let value = self.with(&bind, body);
            match what {
                Each::Map => made.push(value?),
                Each::Filter => made.extend(truth(&value?)?.then_some(item)),
                Each::ExistsOne => good += usize::from(truth(&value?)?),
                // What decides wins over items that have no value.
                Each::All | Each::Exists => match value.and_then(|value| truth(&value)) {
                    Ok(value) if value == (what == Each::Exists) => return Ok(Cel::Bool(value)),
                    Ok(_) => {}
                    Err(Error::TooCostly) => return Err(Error::TooCostly),
                    Err(error) => failed = failed.or(Some(error)),
                },
            }
        }
        match (what, failed) {
            (_, Some(error)) => Err(error),
            (Each::All, None) => Ok(Cel::Bool(true)),
            (Each::Exists, None) => Ok(Cel::Bool(false)),
            (Each::ExistsOne, None) => Ok(Cel::Bool(good == 1)),
            (Each::Map | Each::Filter, None) => Ok(Cel::list(made)),
        }
    }

    fn call(&mut self, target: Option<&'v Expr>, name: &'v str, arguments: &'v [Expr]) -> Result<Cel<'v>> {
        // `optional.of(x)`, `math.greatest(a, b)`, `sets.contains(a, b)`: a space, not a value.
        let space = match target {
            Some(Expr { node: Node::Name(space), .. }) if SPACES.contains(&space.as_str()) => {
                Some(space.as_str())
            }
            _ => None,
        };
        if let (Some(of), "orValue" | "or", [other], None) = (target, name, arguments, space) {
            return match self.run(of)? {
                Cel::Maybe(Some(value)) if name == "orValue" => Ok((*value).clone()),
                some @ Cel::Maybe(Some(_)) => Ok(some),
                Cel::Maybe(None) => self.run(other),
                _ => fault("no such overload"),
            };
        }
        let mut given = Vec::with_capacity(arguments.len() + 1);
        if let (Some(of), None) = (target, space) {
            given.push(self.run(of)?);
        }
        for argument in arguments {
            given.push(self.run(argument)?);
        }
        let cost: u64 = given.iter().map(Cel::weight).sum();
        self.pay(cost)?;
        let found = match space {
            Some(space) => lists::in_space(self, space, name, &given)?,
            None => match strings::call(self, name, &given)? {
                Some(value) => Some(value),
                None => match lists::call(self, name, &given)? {
                    Some(value) => Some(value),
                    None => match time::call(name, &given)? {
                        Some(value) => Some(value),
                        None => net::call(name, &given)?,
                    },
                },
            },
        };
        found.map_or_else(|| fault(format!("no such overload: {name}")), Ok)
    }
}

/// Names before a dot that are no values.
pub const SPACES: [&str; 5] = ["optional", "math", "sets", "cel", "base64"];

/// The type that a name stands for.
pub fn type_of(name: &str) -> Option<&'static str> {
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"]
        .into_iter()
        .find(|own| *own == name)
}

pub fn truth(value: &Cel<'_>) -> Result<bool> {
    match value {
        Cel::Bool(b) => Ok(*b),
        _ => fault("no such overload"),
    }
}

/// How much there is of a value, roughly.
fn size(value: &Cel<'_>, depth: usize) -> u64 {
    if depth > 100 {
        return 1;
    }
    let weigh = |json: &serde_json::Value| match json {
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => json_size(json, 0),
        _ => 1,
    };
    match value {
        Cel::List(items) => items.iter().map(|item| size(item, depth + 1)).sum::<u64>() + 1,
        Cel::Map(entries) => entries.iter().map(|(_, value)| size(value, depth + 1)).sum::<u64>() + 1,
        Cel::Json(json, _) => weigh(json),
        other => other.weight(),
    }
}

fn json_size(value: &serde_json::Value, depth: usize) -> u64 {
    use serde_json::Value;
    match value {
        _ if depth > 200 => 1,
        Value::Array(items) => items.iter().map(|item| json_size(item, depth + 1)).sum::<u64>() + 1,
        Value::Object(fields) => fields.values().map(|value| json_size(value, depth + 1)).sum::<u64>() + 1,
        Value::String(text) => text.len() as u64 / 10 + 1,
        _ => 1,
    }
}

fn negative<'v>(value: &Cel<'v>) -> Result<Cel<'v>> {
    match value {
        Cel::Int(n) => n.checked_neg().map_or_else(|| fault("integer overflow"), |n| Ok(Cel::Int(n))),
        Cel::Double(n) => Ok(Cel::Double(-n)),
        Cel::Span(n) => Ok(Cel::Span(-n)),
        _ => fault("no such overload"),
    }
}

fn arithmetic<'v>(sign: &str, a: &Cel<'v>, b: &Cel<'v>) -> Result<Cel<'v>> {
    let whole = |n: Option<i64>| n.map_or_else(|| fault("integer overflow"), |n| Ok(Cel::Int(n)));
    let positive =
        |n: Option<u64>| n.map_or_else(|| fault("unsigned integer overflow"), |n| Ok(Cel::Uint(n)));
    let zero = matches!(b, Cel::Int(0) | Cel::Uint(0));
    match (sign, a, b) {
        ("/", Cel::Int(_), _) | ("/", Cel::Uint(_), _) if zero => fault("division by zero"),
        ("%", _, _) if zero => fault("modulus by zero"),
        ("+", Cel::Int(a), Cel::Int(b)) => whole(a.checked_add(*b)),
        ("-", Cel::Int(a), Cel::Int(b)) => whole(a.checked_sub(*b)),
        ("*", Cel::Int(a), Cel::Int(b)) => whole(a.checked_mul(*b)),
        ("/", Cel::Int(a), Cel::Int(b)) => whole(a.checked_div(*b)),
        ("%", Cel::Int(a), Cel::Int(b)) => whole(a.checked_rem(*b)),
        ("+", Cel::Uint(a), Cel::Uint(b)) => positive(a.checked_add(*b)),
        ("-", Cel::Uint(a), Cel::Uint(b)) => positive(a.checked_sub(*b)),
        ("*", Cel::Uint(a), Cel::Uint(b)) => positive(a.checked_mul(*b)),
        ("/", Cel::Uint(a), Cel::Uint(b)) => positive(a.checked_div(*b)),
        ("%", Cel::Uint(a), Cel::Uint(b)) => positive(a.checked_rem(*b)),
        ("+", Cel::Span(a), Cel::Span(b)) => Ok(Cel::Span(a + b)),
        ("-", Cel::Span(a), Cel::Span(b)) => Ok(Cel::Span(a - b)),
        ("+", Cel::Time(at), Cel::Span(span)) | ("+", Cel::Span(span), Cel::Time(at)) => {
            time::moved(*at, *span)
        }
        ("-", Cel::Time(at), Cel::Span(span)) => time::moved(*at, -span),
        ("-", Cel::Time(a), Cel::Time(b)) => Ok(Cel::Span(a.as_nanosecond() - b.as_nanosecond())),
        // Whole numbers of a field that may hold fractions come as either.
        (_, Cel::Double(_), Cel::Double(_) | Cel::Int(_)) | (_, Cel::Int(_), Cel::Double(_)) => {
            let (a, b) = (a.float().unwrap_or(0.0), b.float().unwrap_or(0.0));
            match sign {
                "+" => Ok(Cel::Double(a + b)),
                "-" => Ok(Cel::Double(a - b)),
                "*" => Ok(Cel::Double(a * b)),
                "/" => Ok(Cel::Double(a / b)),
                _ => fault("no such overload"),
            }
        }
        _ => fault("no such overload"),
    }
}
