//! Precedence of a filter expression: `not` before `and` before `or`.
//!
//! Owns: the grammar of CONSUL.md B.3.
//! Never: knows which selectors exist.

use super::lexer::{Spanned, Token, syntax};
use super::{Expression, FILTER_DEPTH_MAX, FilterError, Literal, Match, Operator, pattern};

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    depth: usize,
}

pub(super) fn parse(tokens: Vec<Spanned>) -> Result<Expression, FilterError> {
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
    };
    let expression = parser.or()?;
    match parser.peek() {
        Token::End => Ok(expression),
        _ => Err(parser.wrong("\"and\", \"or\" or the end")),
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens
            .get(self.at)
            .map_or(&Token::End, |spanned| &spanned.token)
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |spanned| spanned.offset)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(text) if text == word);
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(text) if *text == sign);
        self.at += usize::from(found);
        found
    }

    fn wrong(&self, expected: &'static str) -> FilterError {
        let found = match self.peek() {
            Token::Word(text) | Token::Text(text) => format!("\"{text}\""),
            Token::Sign(sign) => format!("\"{sign}\""),
            Token::End => "the end".to_owned(),
        };
        syntax(self.offset(), expected, found)
    }

    fn or(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.and()?];
        while self.word("or") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Expression::Or(parts)
        })
    }

    fn and(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.not()?];
        while self.word("and") {
            parts.push(self.not()?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Expression::And(parts)
        })
    }

    fn not(&mut self) -> Result<Expression, FilterError> {
        if !self.word("not") {
            return self.primary();
        }
        self.deeper(|parser| Ok(Expression::Not(Box::new(parser.not()?))))
    }

    fn primary(&mut self) -> Result<Expression, FilterError> {
        if !self.sign("(") {
            return self.matching().map(Expression::Match);
        }
        self.deeper(|parser| {
            let inner = parser.or()?;
            if parser.sign(")") {
                Ok(inner)
            } else {
                Err(parser.wrong("\")\""))
            }
        })
    }

    fn deeper(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<Expression, FilterError>,
    ) -> Result<Expression, FilterError> {
        if self.depth == FILTER_DEPTH_MAX {
            let offset = self.offset();
            return Err(FilterError::TooDeep {
                column: offset + 1,
                offset,
            });
        }
        self.depth += 1;
        let expression = inner(self)?;
        self.depth -= 1;
        Ok(expression)
    }

    fn matching(&mut self) -> Result<Match, FilterError> {
        let start = self.at;
        let value = self.value()?;
        let negated = self.word("not");
        if self.word("in") {
            let selector = self.selector()?;
            return Ok(Match {
                selector,
                operator: Operator::In(value),
                negated,
            });
        }
        self.at = start;
        let selector = self.selector()?;
        let (operator, negated) = self.operator()?;
        Ok(Match {
            selector,
            operator,
            negated,
        })
    }

    fn operator(&mut self) -> Result<(Operator, bool), FilterError> {
        if self.sign("==") {
            return Ok((Operator::Equal(literal(self.value()?)), false));
        }
        if self.sign("!=") {
            return Ok((Operator::Equal(literal(self.value()?)), true));
        }
        if self.word("is") {
            let negated = self.word("not");
            return if self.word("empty") {
                Ok((Operator::Empty, negated))
            } else {
                Err(self.wrong("\"empty\""))
            };
        }
        let negated = self.word("not");
        if self.word("contains") {
            return Ok((Operator::In(self.value()?), negated));
        }
        if self.word("matches") {
            return Ok((Operator::Matches(pattern(&self.value()?)?), negated));
        }
        Err(self.wrong("one of ==, !=, in, contains, matches, is"))
    }

    /// A value: quoted, or words joined by dots (`v1.2`, `10.0.0.7`).
    fn value(&mut self) -> Result<String, FilterError> {
        let mut value = match self.peek() {
            Token::Word(_) | Token::Text(_) => self.take_text(),
            _ => return Err(self.wrong("a name or a value")),
        };
        while self.sign(".") {
            match self.peek() {
                Token::Word(_) => {
                    value.push('.');
                    value.push_str(&self.take_text());
                }
                _ => return Err(self.wrong("a name")),
            }
        }
        // A selector's brackets: skipped here, read again as a selector.
        Ok(value)
    }

    fn take_text(&mut self) -> String {
        match self.next() {
            Token::Word(text) | Token::Text(text) => text,
            Token::Sign(sign) => sign.to_owned(),
            Token::End => String::new(),
        }
    }

    fn selector(&mut self) -> Result<Vec<String>, FilterError> {
        let mut parts = match self.peek() {
            Token::Text(text) if text.starts_with('/') => {
                let parts = pointer(text);
                self.at += 1;
                return Ok(parts);
            }
            Token::Word(_) => vec![self.take_text()],
            _ => return Err(self.wrong("a selector")),
        };
        loop {
            if self.sign(".") {
                match self.peek() {
                    Token::Word(_) => parts.push(self.take_text()),
                    _ => return Err(self.wrong("a name")),
                }
            } else if self.sign("[") {
                match self.peek() {
                    Token::Text(_) => parts.push(self.take_text()),
                    _ => return Err(self.wrong("a quoted name")),
                }
                if !self.sign("]") {
                    return Err(self.wrong("\"]\""));
                }
            } else {
                return Ok(parts);
            }
        }
    }
}

fn pointer(text: &str) -> Vec<String> {
    text[1..]
        .split('/')
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect()
}

fn literal(text: String) -> Literal {
    let number = text.parse().ok();
    let boolean = match text.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    };
    Literal {
        text,
        number,
        boolean,
    }
}
