//! Money, points, stock and prices: decimals that add up exactly and are written without a needless `.0`.

use std::fmt;

use serde_json::Number;
use serde_json::Value;

/// A decimal with six digits after the point; more are rounded away, and sums beyond any shop's till stop at the end of the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount(i128);

impl Amount {
    /// Nothing.
    pub(super) const ZERO: Self = Self(0);

    /// A whole number.
    pub(super) const fn whole(number: i64) -> Self {
        Self(number as i128 * MILLION)
    }

    /// Reads a JSON number, or the text of one: the vendor prints `"100"` and `100` for the same field. None for anything else.
    pub(super) fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::String(text) => Self::parse(text.trim()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The sum.
    pub(super) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference.
    pub(super) fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The product, rounded.
    pub(super) fn times(self, other: Self) -> Self {
        let exact = self.0.saturating_mul(other.0);
        Self(exact.saturating_add(exact.signum() * MILLION / 2) / MILLION)
    }

    /// The JSON number: `100`, `9.42`, never `100.0`.
    pub(super) fn json(self) -> Value {
        if self.0 % MILLION == 0
            && let Ok(whole) = i64::try_from(self.0 / MILLION)
        {
            return Value::from(whole);
        }
        let nearest: f64 = self.to_string().parse().unwrap_or_default();
        Number::from_f64(nearest).map_or(Value::Null, Value::Number)
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() > DIGITS_MAX {
            return None;
        }
        let plain = text.strip_prefix('-').unwrap_or(text);
        let (whole, part) = plain.split_once('.').unwrap_or((plain, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(part) {
            return Self::parse_exponent(text);
        }
        let kept: String = part.chars().chain("000000".chars()).take(6).collect();
        let rounds_up = part.as_bytes().get(6).is_some_and(|digit| *digit >= b'5');
        let size = whole.parse::<i128>().ok()?.checked_mul(MILLION)?;
        let size = size
            .checked_add(kept.parse::<i128>().ok()?)?
            .checked_add(i128::from(rounds_up))?;
        Some(Self(if text.starts_with('-') { -size } else { size }))
    }

    /// `1e3` is a JSON number too, if an odd price.
    fn parse_exponent(text: &str) -> Option<Self> {
        if !text.contains(['e', 'E']) {
            return None;
        }
        let number: f64 = text.parse().ok()?;
        Self::parse(&format!("{number:.6}"))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.unsigned_abs();
        let million = MILLION.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let part = format!("{:06}", size % million);
        match part.trim_end_matches('0') {
            "" => write!(f, "{sign}{}", size / million),
            part => write!(f, "{sign}{}.{part}", size / million),
        }
    }
}

const MILLION: i128 = 1_000_000;

/// Longer texts aren't amounts; with them the arithmetic could leave its range.
const DIGITS_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::amount::Amount;

    #[test]
    fn an_amount_is_written_as_a_person_would() {
        let cases = [
            (json!(100), "100"),
            (json!(100.0), "100"),
            (json!("100"), "100"),
            (json!(9.42), "9.42"),
            (json!(-0.5), "-0.5"),
            (json!("1.2345678"), "1.234568"),
            (json!(1e3), "1000"),
            (json!(9_007_199_254_740_993_i64), "9007199254740993"),
        ];
        for (written, expected) in cases {
            let amount = Amount::read(&written).unwrap();
            assert_eq!(amount.json().to_string(), expected, "{written}");
        }
    }

    #[test]
    fn tenths_add_up_and_products_are_exact() {
        let tenth = Amount::read(&json!(0.1)).unwrap();
        assert_eq!(tenth.plus(tenth).plus(tenth).json(), json!(0.3));
        let total = Amount::read(&json!(1.2))
            .unwrap()
            .times(Amount::read(&json!(30.2)).unwrap());
        assert_eq!(total.json(), json!(36.24));
    }

    #[test]
    fn what_is_no_number_is_no_amount() {
        for value in [
            json!("ten"),
            json!(""),
            json!(null),
            json!(true),
            json!([1]),
            json!("1.2.3"),
            json!("1e99"),
        ] {
            assert_eq!(Amount::read(&value), None, "{value}");
        }
    }
}
