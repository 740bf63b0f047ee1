//! The inside of strings: escapes, interpolations kept as text, heredocs.
//!
//! Owns: turning what stands between quotes into what it means.
//! Never: evaluates `${…}` or `{{ … }}`; both stay as written.

use winnow::stream::{Location, Stream};

use super::reader::{Failure, Input, Read};

/// `"…"`; `input` stands on the opening quote.
pub(super) fn quoted(input: &mut Input<'_>, json: bool) -> Read<String> {
    let start = input.current_token_start();
    input.next_token();
    let mut out = String::new();
    loop {
        let at = input.current_token_start();
        let Some(c) = input.next_token() else {
            return Err(unclosed(start, at));
        };
        match c {
            '"' => return Ok(out),
            '\n' => return Err(unclosed(start, at)),
            '\\' => out.push(escape(input, at, json)?),
            '$' if !json && input.starts_with('{') => {
                out.push('$');
                interpolation(input, start, &mut out)?;
            }
            c if json && c < ' ' => {
                return Err(Failure {
                    start: at,
                    end: at + 1,
                    message: "a control character must be escaped".into(),
                });
            }
            c => out.push(c),
        }
    }
}

fn unclosed(start: usize, end: usize) -> Failure {
    Failure {
        start,
        end,
        message: "this string is not closed with a double quote on its line".into(),
    }
}

/// `{…}` after a `$`, quotes and all, up to the brace that closes it.
fn interpolation(input: &mut Input<'_>, start: usize, out: &mut String) -> Read<()> {
    let mut depth = 0_usize;
    while let Some(c) = input.next_token() {
        out.push(c);
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Ok(()),
            '}' => depth -= 1,
            _ => {}
        }
    }
    let end = input.current_token_start();
    Err(Failure {
        start,
        end,
        message: "\"${\" is not closed with \"}\"".into(),
    })
}

fn escape(input: &mut Input<'_>, at: usize, json: bool) -> Read<char> {
    let bad = |input: &Input<'_>, message: &str| Failure {
        start: at,
        end: input.current_token_start(),
        message: message.into(),
    };
    let Some(c) = input.next_token() else {
        return Err(bad(input, "the text ends inside an escape"));
    };
    Ok(match c {
        '"' | '\\' => c,
        '/' if json => c,
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'a' if !json => '\u{7}',
        'v' if !json => '\u{b}',
        'x' if !json => {
            code_point(input, 2).ok_or_else(|| bad(input, "\\x wants two hexadecimal digits"))?
        }
        'U' if !json => code_point(input, 8)
            .ok_or_else(|| bad(input, "\\U wants eight hexadecimal digits of a character"))?,
        'u' => unicode(input)
            .ok_or_else(|| bad(input, "\\u wants four hexadecimal digits of a character"))?,
        _ => {
            return Err(bad(
                input,
                "this escape is not known; a backslash itself is written \\\\",
            ));
        }
    })
}

/// `\uXXXX`, with the second half of a surrogate pair where the first asks for it.
fn unicode(input: &mut Input<'_>) -> Option<char> {
    let high = digits(input, 4)?;
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high);
    }
    (input.next_token()? == '\\' && input.next_token()? == 'u').then_some(())?;
    let low = digits(input, 4)?;
    (0xdc00..0xe000)
        .contains(&low)
        .then(|| 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
        .and_then(char::from_u32)
}

fn code_point(input: &mut Input<'_>, count: usize) -> Option<char> {
    digits(input, count).and_then(char::from_u32)
}

fn digits(input: &mut Input<'_>, count: usize) -> Option<u32> {
    let mut value = 0_u32;
    for _ in 0..count {
        let digit = input.chars().next()?.to_digit(16)?;
        input.next_token();
        value = value.checked_mul(16)?.checked_add(digit)?;
    }
    Some(value)
}

/// `<<MARK` or `<<-MARK`: the lines up to one that holds only the mark, ends of line kept.
/// With `-`, the closing mark's indentation is taken off every line, if every line has it.
pub(super) fn heredoc(input: &mut Input<'_>) -> Read<String> {
    let start = input.current_token_start();
    let rest: &str = input;
    let first = rest.split('\n').next().unwrap_or_default();
    let fail = |message: &str| Failure {
        start,
        end: start + first.len(),
        message: message.into(),
    };
    let Some(opening) = first.strip_prefix("<<") else {
        return Err(fail("expected a value, found \"<\""));
    };
    let (indented, mark) = opening
        .strip_prefix('-')
        .map_or((false, opening), |mark| (true, mark));
    let mark = mark.trim_end_matches('\r');
    if mark.is_empty() || !mark.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return Err(fail(
            "\"<<\" wants a marker of letters and digits right behind it",
        ));
    }
    let body = rest.get(first.len() + 1..).unwrap_or_default();
    let mut length = 0;
    for line in body.split_inclusive('\n') {
        if line.trim() == mark {
            let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
            let end_of_mark = line.trim_end_matches(['\n', '\r']).len();
            let content = body.get(..length).unwrap_or_default();
            let content = if indented {
                dedent(content, line.get(..indent).unwrap_or_default())
            } else {
                content.to_owned()
            };
            input.next_slice(first.len() + 1 + length + end_of_mark);
            return Ok(content);
        }
        length += line.len();
    }
    Err(fail(&format!("no line with the marker {mark} follows")))
}

fn dedent(content: &str, indent: &str) -> String {
    let lines = || content.split_inclusive('\n');
    if lines().all(|line| line.starts_with(indent) || line.trim().is_empty()) {
        lines()
            .map(|line| line.strip_prefix(indent).unwrap_or(line))
            .collect()
    } else {
        content.to_owned()
    }
}
