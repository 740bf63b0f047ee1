//! Words, numbers, strings and signs of a filter expression.
//!
//! Owns: what a token is and where it stands.
//! Never: knows precedence.

use super::FilterError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword, a name, a number: what needs no quotes.
    Word(String),
    /// What stood in double quotes or backticks.
    Text(String),
    /// One of `( ) [ ] . == !=`.
    Sign(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) offset: usize,
}

pub(super) fn syntax(
    offset: usize,
    expected: &'static str,
    found: impl Into<String>,
) -> FilterError {
    FilterError::Syntax {
        column: offset + 1,
        offset,
        expected,
        found: found.into(),
    }
}

const SIGNS: [&str; 7] = ["==", "!=", "(", ")", "[", "]", "."];

pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, FilterError> {
    let mut tokens = Vec::new();
    let mut offset = 0;
    while let Some(first) = text[offset..].chars().next() {
        let rest = &text[offset..];
        if first.is_whitespace() {
            offset += first.len_utf8();
            continue;
        }
        let (token, length) =
            if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
                (Token::Sign(sign), sign.len())
            } else if first == '"' || first == '`' {
                quoted(rest, first, offset)?
            } else {
                let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                if length == 0 {
                    return Err(syntax(
                        offset,
                        "a name, a value or an operator",
                        format!("{first:?}"),
                    ));
                }
                (Token::Word(rest[..length].to_owned()), length)
            };
        tokens.push(Spanned { token, offset });
        offset += length;
    }
    tokens.push(Spanned {
        token: Token::End,
        offset,
    });
    Ok(tokens)
}

// Wider than Consul's: an unquoted value may hold dashes, slashes and colons.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | ':' | '+')
}

fn quoted(rest: &str, quote: char, offset: usize) -> Result<(Token, usize), FilterError> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((Token::Text(text), at + 1)),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                // Kept, for patterns: "\d" reads as they are written elsewhere.
                Some((_, c)) => text.extend(['\\', c]),
                None => break,
            },
            c => text.push(c),
        }
    }
    Err(syntax(offset, "a closing quote", "the end"))
}
