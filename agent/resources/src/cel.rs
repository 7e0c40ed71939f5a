//! The Common Expression Language, as Kubernetes uses it: rules of custom kinds, admission policies, match conditions.
//!
//! An expression is read once ([`Program::compile`]) and evaluated over JSON values where they are, with the types that
//! a structural schema gives them. Every step and every byte looked at is paid for from a [`Budget`], so that no
//! expression and no object can keep the server busy: the published interpreters have no such bound, which is why this
//! one is ours.

mod check;
mod eval;
mod lex;
mod lists;
mod net;
mod parse;
mod strings;
#[cfg(test)]
mod tests;
mod time;
mod value;

pub use value::Cel;

use crate::custom::Schema;
use parse::Expr;

/// Bytes of one expression.
const MAX_TEXT: usize = 16 * 1024;

/// What evaluations may still cost; one evaluation at most [`Budget::CALL`].
#[derive(Debug)]
pub struct Budget {
    left: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: Self::ALL }
    }
}

impl Budget {
    /// What all expressions of one request may cost together.
    pub const ALL: u64 = 10_000_000;
    /// What one evaluation may cost.
    pub const CALL: u64 = 1_000_000;

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What the expression asks for is not there or makes no sense.
    #[error("{0}")]
    Fault(String),
    /// It costs too much.
    #[error("operation cancelled: actual cost limit exceeded")]
    TooCostly,
}

/// Names an expression may use, with their values.
pub type Variables<'v> = [(&'v str, Cel<'v>)];

/// An expression that was read.
#[derive(Clone, Debug)]
pub struct Program {
    root: Expr,
    text: String,
}

impl Program {
    /// Reads an expression that may use these variables, of these schemas as far as they are known. What is wrong is
    /// told with its place.
    pub fn compile(text: &str, variables: &[(&str, Option<&Schema>)]) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("the expression is longer than {MAX_TEXT} bytes"));
        }
        let told = |(at, why): (usize, String)| place(text, at, &why);
        let root = parse::parse(text).map_err(told)?;
        check::check(&root, variables).map_err(told)?;
        Ok(Self { root, text: text.to_owned() })
    }

    /// The expression as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the expression uses a variable.
    pub fn uses(&self, name: &str) -> bool {
        check::uses(&self.root, name)
    }

    /// The expression's value.
    pub fn run<'v>(&'v self, variables: &Variables<'v>, budget: &mut Budget) -> Result<Cel<'v>, Error> {
        let given = budget.left.min(Budget::CALL);
        let mut eval = eval::Eval::new(variables, given);
        let result = eval.run(&self.root);
        budget.left -= given - eval.left();
        result
    }
}

/// `ERROR: <input>:1:5: why`, and the line with a mark below.
fn place(text: &str, at: usize, why: &str) -> String {
    let before = text.get(..at).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before[start..].chars().count() + 1;
    let line = text[start..].lines().next().unwrap_or_default();
    format!("ERROR: <input>:{number}:{column}: {why}\n | {line}\n | {}^", ".".repeat(column - 1))
}
