//! Functions of lists, maps, sets, numbers and optional values.

use super::Error;
use super::eval::Eval;
use super::strings::{self, length, shown};
use super::value::{Cel, fault};
use std::cmp::Ordering;

type Found<'v> = Result<Option<Cel<'v>>, Error>;

/// Calls a function of lists, if it is one.
pub fn call<'v>(eval: &mut Eval<'_, 'v>, name: &str, given: &[Cel<'v>]) -> Found<'v> {
    let [of, rest @ ..] = given else { return Ok(None) };
    match (name, of, rest) {
        ("hasValue", Cel::Maybe(value), []) => return Ok(Some(Cel::Bool(value.is_some()))),
        ("value", Cel::Maybe(Some(value)), []) => return Ok(Some((**value).clone())),
        ("value", Cel::Maybe(None), []) => return fault("optional.none() dereference"),
        ("size", of, []) if of.count().is_some() => {
            return Ok(Some(Cel::Int(length(of.count().unwrap_or(0)))));
        }
        _ if !of.is_list() => return Ok(None),
        _ => {}
    }
    let items = of.items()?;
    eval.pay(items.len() as u64)?;
    Ok(Some(match (name, rest) {
        ("isSorted", []) => Cel::Bool(
            items.windows(2).all(|two| two[0].order(&two[1]).is_some_and(|o| o != Ordering::Greater)),
        ),
        ("sum", []) => sum(&items)?,
        ("min", []) => pick(&items, "min", Ordering::Less)?,
        ("max", []) => pick(&items, "max", Ordering::Greater)?,
        ("indexOf", [value]) => Cel::Int(items.iter().position(|item| item.same(value)).map_or(-1, length)),
        ("lastIndexOf", [value]) => {
            Cel::Int(items.iter().rposition(|item| item.same(value)).map_or(-1, length))
        }
        ("join", []) => Cel::text(joined(&items, "")?),
        ("join", [Cel::Text(by)]) => {
            eval.pay(items.len() as u64 * (by.len() as u64 / 10 + 1))?;
            Cel::text(joined(&items, by)?)
        }
        ("distinct", []) => Cel::list(distinct(eval, items)?),
        ("reverse", []) => Cel::list(items.into_iter().rev().collect()),
        ("flatten", []) => {
            let mut flat = Vec::new();
            for item in items {
                if item.is_list() {
                    flat.extend(item.items()?)
                } else {
                    flat.push(item)
                }
                eval.pay(1)?;
            }
            Cel::list(flat)
        }
        ("sort", []) => {
            let mut items = items;
            eval.pay(items.len() as u64 * 8)?;
            items.sort_by(|a, b| a.order(b).unwrap_or(Ordering::Equal));
            Cel::list(items)
        }
        ("slice", [Cel::Int(from), Cel::Int(to)]) => {
            let range = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
            match range.and_then(|(from, to)| items.get(from..to)) {
                Some(part) => Cel::list(part.to_vec()),
                None => return fault(format!("cannot slice({from}, {to}), list is length {}", items.len())),
            }
        }
        ("first", []) => Cel::maybe(items.into_iter().next()),
        ("last", []) => Cel::maybe(items.into_iter().next_back()),
        _ => return Ok(None),
    }))
}

fn sum<'v>(items: &[Cel<'v>]) -> Result<Cel<'v>, Error> {
    let mut total = Cel::Int(0);
    for item in items {
        total = match (&total, item) {
            (Cel::Int(a), Cel::Int(b)) => match a.checked_add(*b) {
                Some(n) => Cel::Int(n),
                None => return fault("integer overflow"),
            },
            (Cel::Int(0), Cel::Span(b)) => Cel::Span(*b),
            (Cel::Span(a), Cel::Span(b)) => Cel::Span(a + b),
            (a, b) => match (a.float(), b.float()) {
                (Some(a), Some(b)) => Cel::Double(a + b),
                _ => return fault("no such overload"),
            },
        };
    }
    Ok(total)
}

fn pick<'v>(items: &[Cel<'v>], name: &str, wanted: Ordering) -> Result<Cel<'v>, Error> {
    let Some((first, rest)) = items.split_first() else {
        return fault(format!("{name} called on empty list"));
    };
    let mut best = first;
    for item in rest {
        match item.order(best) {
            Some(order) if order == wanted => best = item,
            Some(_) => {}
            None => return fault("no such overload"),
        }
    }
    Ok(best.clone())
}

fn joined(items: &[Cel<'_>], by: &str) -> Result<String, Error> {
    let texts = items.iter().map(|item| match item {
        Cel::Text(text) => Ok(text.as_ref()),
        _ => fault("no such overload"),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join(by))
}

fn distinct<'v>(eval: &mut Eval<'_, 'v>, items: Vec<Cel<'v>>) -> Result<Vec<Cel<'v>>, Error> {
    let mut kept: Vec<Cel<'v>> = Vec::new();
    for item in items {
        eval.pay(kept.len() as u64)?;
        if !kept.iter().any(|other| other.same(&item)) {
            kept.push(item);
        }
    }
    Ok(kept)
}

/// Calls `optional.of`, `math.greatest`, `sets.contains` and their kin.
pub fn in_space<'v>(eval: &mut Eval<'_, 'v>, space: &str, name: &str, given: &[Cel<'v>]) -> Found<'v> {
    match (space, name, given) {
        ("optional", "none", []) => Ok(Some(Cel::Maybe(None))),
        ("optional", "of", [value]) => Ok(Some(Cel::maybe(Some(value.clone())))),
        ("optional", "ofNonZeroValue", [value]) => {
            Ok(Some(Cel::maybe(Some(value.clone()).filter(|value| !is_zero(value)))))
        }
        ("base64", ..) => strings::base64(name, given),
        ("math", "greatest" | "least", given) => {
            let items = match given {
                [list] if list.is_list() => list.items()?,
                all => all.to_vec(),
            };
            let wanted = if name == "least" { Ordering::Less } else { Ordering::Greater };
            pick(&items, name, wanted).map(Some)
        }
        ("math", "abs", [Cel::Int(n)]) => match n.checked_abs() {
            Some(n) => Ok(Some(Cel::Int(n))),
            None => fault("integer overflow"),
        },
        ("math", "abs", [Cel::Double(n)]) => Ok(Some(Cel::Double(n.abs()))),
        ("math", "ceil", [Cel::Double(n)]) => Ok(Some(Cel::Double(n.ceil()))),
        ("math", "floor", [Cel::Double(n)]) => Ok(Some(Cel::Double(n.floor()))),
        ("math", "round", [Cel::Double(n)]) => Ok(Some(Cel::Double(n.round()))),
        ("sets", "contains", [a, b]) => Ok(Some(Cel::Bool(within(eval, b, a)?))),
        ("sets", "equivalent", [a, b]) => Ok(Some(Cel::Bool(within(eval, a, b)? && within(eval, b, a)?))),
        ("sets", "intersects", [a, b]) => {
            for item in a.items()? {
                if eval.contains(b, &item)? {
                    return Ok(Some(Cel::Bool(true)));
                }
            }
            Ok(Some(Cel::Bool(false)))
        }
        _ => Ok(None),
    }
}

/// Whether all of one list are in another.
fn within<'v>(eval: &mut Eval<'_, 'v>, part: &Cel<'v>, of: &Cel<'v>) -> Result<bool, Error> {
    for item in part.items()? {
        if !eval.contains(of, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_zero(value: &Cel<'_>) -> bool {
    match value {
        Cel::Null | Cel::Maybe(None) => true,
        Cel::Bool(b) => !b,
        Cel::Text(_) => shown(value).is_empty(),
        other => other.count() == Some(0) || other.float() == Some(0.0),
    }
}
