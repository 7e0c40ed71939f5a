//! From tokens to a tree.

use super::check::each_inner;
use super::lex::{Fault, Token, tokens};

/// How deep expressions may stand in one another.
const MAX_DEPTH: usize = 96;
/// How deep a tree may be: it is walked by functions that call themselves.
const MAX_TREE: usize = 200;

/// A node, and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub at: usize,
    pub node: Node,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    /// `a.b`; `maybe`: `a.?b`.
    Select {
        of: Box<Expr>,
        field: String,
        maybe: bool,
    },
    /// `has(a.b)`
    Has {
        of: Box<Expr>,
        field: String,
    },
    /// `a[b]`; `maybe`: `a[?b]`.
    Index {
        of: Box<Expr>,
        by: Box<Expr>,
        maybe: bool,
    },
    /// `f(a)`, `a.f(b)`.
    Call {
        target: Option<Box<Expr>>,
        name: String,
        arguments: Vec<Expr>,
    },
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Two {
        sign: &'static str,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Choice {
        condition: Box<Expr>,
        yes: Box<Expr>,
        no: Box<Expr>,
    },
    /// `list.all(x, ...)` and its kin.
    Each {
        what: Each,
        of: Box<Expr>,
        names: Vec<String>,
        filter: Option<Box<Expr>>,
        body: Box<Expr>,
    },
    /// `cel.bind(x, value, body)`
    Bind {
        name: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
}

/// What is made of a list's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
}

/// Reads an expression.
pub fn parse(text: &str) -> Result<Expr, Fault> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0, end: text.len() };
    let expr = parser.expr()?;
    match parser.tokens.get(parser.next) {
        None if deepest(&expr) > MAX_TREE => {
            Err((0, format!("expression recursion limit exceeded: {MAX_TREE}")))
        }
        None => Ok(expr),
        Some((at, _)) => Err((
            *at,
            format!("Syntax error: extraneous input '{}'", &text[*at..].chars().take(1).collect::<String>()),
        )),
    }
}

/// The depth of a tree.
fn deepest(root: &Expr) -> usize {
    let (mut deepest, mut open) = (0, vec![(root, 1)]);
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        each_inner(expr, &mut |inner| open.push((inner, depth + 1)));
    }
    deepest
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    end: usize,
}

/// Operators of two sides, the loosest first.
const LEVELS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<", "<=", ">", ">=", "in"], &["+", "-"], &["*", "/", "%"]];

impl Parser {
    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    /// Takes this sign, if it is next.
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.next += usize::from(found);
        found
    }

    fn must(&mut self, sign: &str) -> Result<(), Fault> {
        if self.take(sign) { Ok(()) } else { Err((self.at(), format!("Syntax error: missing '{sign}'"))) }
    }

    fn expr(&mut self) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err((self.at(), format!("expression recursion limit exceeded: {MAX_DEPTH}")));
        }
        let at = self.at();
        let condition = self.level(0)?;
        let result = if self.take("?") {
            let yes = self.expr()?;
            self.must(":")?;
            let no = self.expr()?;
            let (condition, yes, no) = (Box::new(condition), Box::new(yes), Box::new(no));
            Expr { at, node: Node::Choice { condition, yes, no } }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(result)
    }

    fn level(&mut self, level: usize) -> Result<Expr, Fault> {
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        let mut chained = 0;
        loop {
            let sign = match self.peek() {
                Some(Token::Sign(sign)) => signs.iter().find(|s| *s == sign),
                Some(Token::Name(name)) if name == "in" => signs.iter().find(|s| **s == "in"),
                _ => None,
            };
            let Some(sign) = sign.copied() else { return Ok(left) };
            let at = self.at();
            self.next += 1;
            chained += 1;
            // A chain leans to the left: each part makes the tree one deeper.
            if chained + self.depth > MAX_DEPTH {
                return Err((at, format!("expression recursion limit exceeded: {MAX_DEPTH}")));
            }
            let right = self.level(level + 1)?;
            left = Expr { at, node: Node::Two { sign, left: Box::new(left), right: Box::new(right) } };
        }
    }

    fn unary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        for (sign, wrap) in [("!", Node::Not as fn(Box<Expr>) -> Node), ("-", Node::Negative)] {
            if self.take(sign) {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err((at, format!("expression recursion limit exceeded: {MAX_DEPTH}")));
                }
                let inner = self.unary()?;
                self.depth -= 1;
                return Ok(Expr { at, node: wrap(Box::new(inner)) });
            }
        }
        let mut expr = self.primary()?;
        let mut steps = 0;
        loop {
            steps += 1;
            if steps + self.depth > MAX_DEPTH {
                return Err((self.at(), format!("expression recursion limit exceeded: {MAX_DEPTH}")));
            }
            let at = self.at();
            let node = if self.take(".") {
                let maybe = self.take("?");
                let field = self.name()?;
                if !maybe && self.take("(") {
                    let arguments = self.list(")")?;
                    call(at, Some(expr), field, arguments)?
                } else {
                    Node::Select { of: Box::new(expr), field, maybe }
                }
            } else if self.take("[") {
                let maybe = self.take("?");
                let by = Box::new(self.expr()?);
                self.must("]")?;
                Node::Index { of: Box::new(expr), by, maybe }
            } else {
                return Ok(expr);
            };
            expr = Expr { at, node };
        }
    }

    fn name(&mut self) -> Result<String, Fault> {
        match self.peek().cloned() {
            Some(Token::Name(name)) => {
                self.next += 1;
                Ok(name)
            }
            _ => Err((self.at(), "Syntax error: a name is missing".to_owned())),
        }
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        let Some(token) = self.peek().cloned() else {
            return Err((at, "Syntax error: mismatched input '<EOF>'".to_owned()));
        };
        self.next += 1;
        let node = match token {
            Token::Int(n) => Node::Int(n),
            Token::Uint(n) => Node::Uint(n),
            Token::Double(n) => Node::Double(n),
            Token::Text(text) => Node::Text(text),
            Token::Bytes(bytes) => Node::Bytes(bytes),
            Token::Name(name) => match name.as_str() {
                "true" => Node::Bool(true),
                "false" => Node::Bool(false),
                "null" => Node::Null,
                _ if self.take("(") => {
                    let arguments = self.list(")")?;
                    call(at, None, name, arguments)?
                }
                _ => Node::Name(name),
            },
            Token::Sign("(") => {
                let inner = self.expr()?;
                self.must(")")?;
                return Ok(inner);
            }
            Token::Sign("[") => Node::List(self.list("]")?),
            Token::Sign("{") => Node::Map(self.entries()?),
            // A name from the outermost scope.
            Token::Sign(".") => Node::Name(self.name()?),
            Token::Sign(sign) => return Err((at, format!("Syntax error: extraneous input '{sign}'"))),
        };
        Ok(Expr { at, node })
    }

    /// Expressions up to this bracket.
    fn list(&mut self, end: &str) -> Result<Vec<Expr>, Fault> {
        let mut items = Vec::new();
        while !self.take(end) {
            items.push(self.expr()?);
            if !self.take(",") {
                self.must(end)?;
                break;
            }
        }
        Ok(items)
    }

    fn entries(&mut self) -> Result<Vec<(Expr, Expr)>, Fault> {
        let mut entries = Vec::new();
        while !self.take("}") {
            let key = self.expr()?;
            self.must(":")?;
            entries.push((key, self.expr()?));
            if !self.take(",") {
                self.must("}")?;
                break;
            }
        }
        Ok(entries)
    }
}

/// A call, or what a macro stands for.
fn call(at: usize, target: Option<Expr>, name: String, mut arguments: Vec<Expr>) -> Result<Node, Fault> {
    let variable = |expr: &Expr| match &expr.node {
        Node::Name(name) => Ok(name.clone()),
        _ => Err((expr.at, "argument is not an identifier".to_owned())),
    };
    let each = match name.as_str() {
        "all" => Some(Each::All),
        "exists" => Some(Each::Exists),
        "exists_one" | "existsOne" => Some(Each::ExistsOne),
        "map" => Some(Each::Map),
        "filter" => Some(Each::Filter),
        _ => None,
    };
    match (target, each, arguments.len()) {
        (None, _, 1) if name == "has" => match arguments.remove(0).node {
            Node::Select { of, field, maybe: false } => Ok(Node::Has { of, field }),
            _ => Err((at, "invalid argument to has() macro".to_owned())),
        },
        (Some(Expr { node: Node::Name(space), .. }), _, 3) if space == "cel" && name == "bind" => {
            let body = Box::new(arguments.remove(2));
            let value = Box::new(arguments.remove(1));
            Ok(Node::Bind { name: variable(&arguments[0])?, value, body })
        }
        (Some(of), Some(what), count @ (2 | 3)) => {
            let body = Box::new(arguments.remove(count - 1));
            let first = variable(&arguments[0])?;
            // `map(x, condition, value)`; otherwise a second name is a map's value or a list's item.
            let (names, filter) = match (count, what) {
                (2, _) => (vec![first], None),
                (_, Each::Map) => (vec![first], Some(Box::new(arguments.remove(1)))),
                _ => (vec![first, variable(&arguments[1])?], None),
            };
            Ok(Node::Each { what, of: Box::new(of), names, filter, body })
        }
        (target, ..) => Ok(Node::Call { target: target.map(Box::new), name, arguments }),
    }
}
