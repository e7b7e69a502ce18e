//! What a key of the top level means to whoever parses it: its escapes read, and whether it could be taken for `appId`.

use std::borrow::Cow;

/// Whether a forgiving server might bind this key to `appId`: letter case folded, and spaces, control and invisible characters,
/// `_` and `-` dropped.
pub(super) fn reads_as_app_id(key: &str, escaped: bool) -> bool {
    let decoded = if escaped {
        Cow::Owned(String::from_utf8_lossy(&decoded(key)).into_owned())
    } else {
        Cow::Borrowed(key)
    };
    // Where texts end with a NUL so does a key; elsewhere it's dropped like every control character. None stands there but by an escape.
    let before_nul = || decoded.split_once('\0');
    is_app_id(&decoded) || escaped && before_nul().is_some_and(|(before, _)| is_app_id(before))
}

fn is_app_id(key: &str) -> bool {
    let mut expected = "appid".chars();
    for character in key.chars() {
        // Nearly all keys are made of these, for which folding is one step.
        if character.is_ascii_alphanumeric() {
            if expected.next() != Some(character.to_ascii_lowercase()) {
                return false;
            }
            continue;
        }
        let character = narrow(character);
        if is_dropped(character) {
            continue;
        }
        for folded in character.to_uppercase().flat_map(char::to_lowercase) {
            // What `İ` and its like leave behind when folded.
            if folded == '\u{307}' {
                continue;
            }
            if expected.next() != Some(folded) {
                return false;
            }
        }
    }
    expected.next().is_none()
}

/// Full-width forms as their ASCII ones.
fn narrow(character: char) -> char {
    match character {
        '\u{ff01}'..='\u{ff5e}' => {
            char::from_u32(u32::from(character) - 0xfee0).unwrap_or(character)
        }
        other => other,
    }
}

fn is_dropped(character: char) -> bool {
    // Unicode's default-ignorable code points, and what stands for a lone surrogate.
    let invisible = matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2010}'..='\u{2015}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffd}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    );
    invisible
        || character.is_whitespace()
        || character.is_control()
        || character == '_'
        || character == '-'
}

/// A key as parsers see it. Lone surrogates become their three-byte form, so that different ones stay different.
pub(super) fn decoded(text: &str) -> Vec<u8> {
    let units = Units {
        rest: text.as_bytes(),
    };
    let mut out = Vec::with_capacity(text.len());
    let mut pending: Option<u16> = None;
    for unit in units {
        match (pending.take(), unit) {
            (Some(high), Unit::Code(low @ 0xdc00..=0xdfff)) => {
                let code =
                    0x1_0000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(low) - 0xdc00);
                push_code(&mut out, code);
                continue;
            }
            (Some(high), _) => push_code(&mut out, high.into()),
            (None, _) => {}
        }
        match unit {
            Unit::Byte(byte) => out.push(byte),
            Unit::Code(high @ 0xd800..=0xdbff) => pending = Some(high),
            Unit::Code(code) => push_code(&mut out, code.into()),
        }
    }
    if let Some(high) = pending {
        push_code(&mut out, high.into());
    }
    out
}

#[derive(Clone, Copy)]
enum Unit {
    Byte(u8),
    Code(u16),
}

/// The text with its escapes read. The scanner has checked them.
struct Units<'a> {
    rest: &'a [u8],
}

impl Iterator for Units<'_> {
    type Item = Unit;

    fn next(&mut self) -> Option<Unit> {
        let (unit, rest) = match self.rest {
            [] => return None,
            [b'\\', b'u', digits @ ..] => {
                let hex = digits
                    .get(..4)
                    .and_then(|hex| std::str::from_utf8(hex).ok());
                let code = hex
                    .and_then(|hex| u16::from_str_radix(hex, 16).ok())
                    .unwrap_or_default();
                (Unit::Code(code), digits.get(4..).unwrap_or_default())
            }
            [b'\\', short, rest @ ..] => {
                let byte = match short {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                };
                (Unit::Byte(byte), rest)
            }
            [byte, rest @ ..] => (Unit::Byte(*byte), rest),
        };
        self.rest = rest;
        Some(unit)
    }
}

/// Generalised UTF-8: surrogates are written as any other code of their size.
fn push_code(out: &mut Vec<u8>, code: u32) {
    let byte = |lead: u32, shift: u32, mask: u32| (lead | code >> shift & mask) as u8;
    match code {
        0..0x80 => out.push(byte(0, 0, 0x7f)),
        0x80..0x800 => out.extend([byte(0xc0, 6, 0x1f), byte(0x80, 0, 0x3f)]),
        0x800..0x1_0000 => out.extend([
            byte(0xe0, 12, 0x0f),
            byte(0x80, 6, 0x3f),
            byte(0x80, 0, 0x3f),
        ]),
        _ => out.extend([
            byte(0xf0, 18, 0x07),
            byte(0x80, 12, 0x3f),
            byte(0x80, 6, 0x3f),
            byte(0x80, 0, 0x3f),
        ]),
    }
}
