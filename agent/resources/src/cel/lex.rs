//! From text to tokens.

use std::iter::Peekable;
use std::str::CharIndices;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Name(String),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Sign(&'static str),
}

/// What is wrong, and where.
pub type Fault = (usize, String);

const SIGNS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", "(", ")", "[", "]",
    "{", "}", ".", ",", "=", "&", "|",
];

/// All tokens with the places where they begin.
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Fault> {
    let mut lexer = Lexer { text, chars: text.char_indices().peekable() };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'t> {
    text: &'t str,
    chars: Peekable<CharIndices<'t>>,
}

impl Lexer<'_> {
    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn rest(&mut self) -> &str {
        let at = self.at();
        &self.text[at..]
    }

    fn skip(&mut self, count: usize) {
        (0..count).for_each(|_| {
            self.chars.next();
        });
    }

    fn take(&mut self, which: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| which(*c)) {
            taken.push(c);
        }
        taken
    }

    fn next(&mut self) -> Result<Option<(usize, Token)>, Fault> {
        self.take(char::is_whitespace);
        while self.rest().starts_with("//") {
            self.take(|c| c != '\n');
            self.take(char::is_whitespace);
        }
        let at = self.at();
        let Some(first) = self.chars.peek().map(|(_, c)| *c) else { return Ok(None) };
        let token = if let Some(prefix) = self.quoted() {
            self.text(at, &prefix)?
        } else if first.is_ascii_digit()
            || (first == '.' && self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()))
        {
            self.number(at)?
        } else if first.is_ascii_alphabetic() || first == '_' {
            Token::Name(self.take(|c| c.is_ascii_alphanumeric() || c == '_'))
        } else {
            let rest = self.rest();
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign)).copied();
            let sign =
                sign.ok_or_else(|| (at, format!("Syntax error: token recognition error at: '{first}'")))?;
            self.skip(sign.len());
            Token::Sign(sign)
        };
        Ok(Some((at, token)))
    }

    /// The prefix of a text that begins here, if one does.
    fn quoted(&mut self) -> Option<String> {
        let rest = self.rest();
        let prefix: String = rest.chars().take_while(|c| "rRbB".contains(*c)).take(2).collect();
        rest[prefix.len()..].starts_with(['"', '\'']).then_some(prefix)
    }

    fn number(&mut self, at: usize) -> Result<Token, Fault> {
        let bad = |text: &str| (at, format!("invalid number {text}"));
        if self.rest().starts_with("0x") || self.rest().starts_with("0X") {
            self.skip(2);
            let digits = self.take(|c| c.is_ascii_hexdigit());
            if self.chars.next_if(|(_, c)| matches!(c, 'u' | 'U')).is_some() {
                return u64::from_str_radix(&digits, 16).map(Token::Uint).map_err(|_| bad(&digits));
            }
            return i64::from_str_radix(&digits, 16).map(Token::Int).map_err(|_| bad(&digits));
        }
        let mut text = self.take(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.rest().starts_with('.') && self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) {
            self.skip(1);
            text = format!("{text}.{}", self.take(|c| c.is_ascii_digit()));
            whole = false;
        }
        if self.rest().starts_with(['e', 'E']) {
            self.skip(1);
            text.push('e');
            text.push_str(&self.take(|c| matches!(c, '+' | '-')));
            text.push_str(&self.take(|c| c.is_ascii_digit()));
            whole = false;
        }
        if whole && self.chars.next_if(|(_, c)| matches!(c, 'u' | 'U')).is_some() {
            return text.parse().map(Token::Uint).map_err(|_| bad(&text));
        }
        if whole {
            return text.parse().map(Token::Int).map_err(|_| bad(&text));
        }
        text.parse().map(Token::Double).map_err(|_| bad(&text))
    }

    fn text(&mut self, at: usize, prefix: &str) -> Result<Token, Fault> {
        self.skip(prefix.len());
        let prefix = prefix.to_lowercase();
        let quote = self.rest().chars().next().unwrap_or('"');
        let triple = self.rest().starts_with(&quote.to_string().repeat(3));
        let end = if triple { quote.to_string().repeat(3) } else { quote.to_string() };
        self.skip(end.len());
        let mut bytes = Vec::new();
        loop {
            if self.rest().starts_with(&end) {
                self.skip(end.len());
                break;
            }
            let next = self.chars.next().filter(|(_, c)| triple || *c != '\n');
            let (_, c) = next.ok_or_else(|| (at, "Syntax error: the string does not end".to_owned()))?;
            if c == '\\' && !prefix.contains('r') {
                self.escape(at, prefix.contains('b'), &mut bytes)?;
            } else {
                push(&mut bytes, c);
            }
        }
        if prefix.contains('b') {
            return Ok(Token::Bytes(bytes));
        }
        String::from_utf8(bytes).map(Token::Text).map_err(|_| (at, "the string is not UTF-8".to_owned()))
    }

    fn escape(&mut self, at: usize, raw: bool, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let bad = || (at, "Syntax error: invalid escape sequence".to_owned());
        let (_, c) = self.chars.next().ok_or_else(bad)?;
        let digits = |this: &mut Self, count: usize, radix: u32, first: &str| {
            let mut text = first.to_owned();
            for _ in 0..count {
                text.extend(this.chars.next_if(|(_, c)| c.is_digit(radix)).map(|(_, c)| c));
            }
            u32::from_str_radix(&text, radix).map_err(|_| bad())
        };
        let code = match c {
            'n' => u32::from(b'\n'),
            't' => u32::from(b'\t'),
            'r' => u32::from(b'\r'),
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'v' => 11,
            '\\' | '"' | '\'' | '`' | '?' => u32::from(c),
            'x' | 'X' => digits(self, 2, 16, "")?,
            'u' => digits(self, 4, 16, "")?,
            'U' => digits(self, 8, 16, "")?,
            '0'..='3' => digits(self, 2, 8, &c.to_string())?,
            _ => return Err(bad()),
        };
        match u8::try_from(code) {
            Ok(byte) if raw => bytes.push(byte),
            _ => push(bytes, char::from_u32(code).ok_or_else(bad)?),
        }
        Ok(())
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
