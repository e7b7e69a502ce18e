//! A record: one JSON object, of a request or of the shop, read field by field as leniently as the vendor does.

use serde_json::Map;
use serde_json::Value;

use crate::simulator::amount::Amount;
use crate::simulator::moment::Moment;
use crate::simulator::reply::Refusal;

/// A JSON object. What the shop keeps may have fields that no answer shows, such as a ticket's uid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record(Map<String, Value>);

impl Record {
    /// The record of a JSON object; None for any other value.
    pub(super) fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Self(fields)),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => None,
        }
    }

    /// The record of a literal that is an object; of anything else, an empty one.
    pub(super) fn object(literal: Value) -> Self {
        Self::from_value(literal).unwrap_or_default()
    }

    /// The field's value, if it's there and isn't null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// Writes the field.
    pub(super) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
    }

    /// Writes all fields of `other`.
    pub(super) fn take_all(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The field as text, whether it was written as a string or as a number: ids come as either. None if blank.
    pub(super) fn text(&self, field: &str) -> Option<String> {
        let text = match self.get(field)? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// The field as text, which mustn't be blank.
    pub(super) fn need(&self, field: &'static str) -> Result<String, Refusal> {
        self.text(field).ok_or(Refusal::FieldMissing(field))
    }

    /// Whether the field's text is `text`.
    pub(super) fn is(&self, field: &str, text: &str) -> bool {
        match self.get(field) {
            Some(Value::String(own)) => own == text,
            _ => self.text(field).is_some_and(|own| own == text),
        }
    }

    /// Whether a yes-or-no field says yes: `true`, `1` and `"1"` do.
    pub(super) fn says_yes(&self, field: &str) -> bool {
        self.get(field) == Some(&Value::Bool(true))
            || matches!(self.text(field).as_deref(), Some("1" | "true"))
    }

    /// The field as a decimal; zero when it's absent.
    pub(super) fn amount(&self, field: &str) -> Amount {
        self.get(field)
            .and_then(Amount::read)
            .unwrap_or(Amount::ZERO)
    }

    /// The field as a decimal; None when it's absent or blank.
    pub(super) fn amount_given(&self, field: &'static str) -> Result<Option<Amount>, Refusal> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(value) => Amount::read(value)
                .map(Some)
                .ok_or(Refusal::FieldWrong(field)),
        }
    }

    /// The field as a decimal that must be there.
    pub(super) fn need_amount(&self, field: &'static str) -> Result<Amount, Refusal> {
        self.amount_given(field)?
            .ok_or(Refusal::FieldMissing(field))
    }

    /// The field as a date.
    pub(super) fn need_moment(&self, field: &'static str) -> Result<Moment, Refusal> {
        Moment::parse(&self.need(field)?).ok_or(Refusal::FieldWrong(field))
    }

    /// The field as an object.
    pub(super) fn need_record(&self, field: &'static str) -> Result<Self, Refusal> {
        let value = self.get(field).ok_or(Refusal::FieldMissing(field))?;
        Self::from_value(value.clone()).ok_or(Refusal::FieldWrong(field))
    }

    /// The field as a list of objects.
    pub(super) fn need_records(&self, field: &'static str) -> Result<Vec<Self>, Refusal> {
        let values = self.need_list(field)?;
        values
            .iter()
            .map(|value| Self::from_value(value.clone()).ok_or(Refusal::FieldWrong(field)))
            .collect()
    }

    /// The field as a list.
    pub(super) fn need_list(&self, field: &'static str) -> Result<&[Value], Refusal> {
        let value = self.get(field).ok_or(Refusal::FieldMissing(field))?;
        value
            .as_array()
            .map(Vec::as_slice)
            .ok_or(Refusal::FieldWrong(field))
    }

    /// Two dates that enclose at most `days`.
    pub(super) fn need_window(
        &self,
        start: &'static str,
        end: &'static str,
        days: u64,
    ) -> Result<Window, Refusal> {
        let window = Window {
            start: self.need_moment(start)?,
            end: self.need_moment(end)?,
        };
        if window.start.is_within(window.end, days) {
            Ok(window)
        } else {
            Err(Refusal::WindowWrong)
        }
    }

    /// These fields of the record, as an answer shows them; one it hasn't is an empty text.
    pub(super) fn shown(&self, fields: &[&str]) -> Value {
        let show = |field: &&str| {
            (
                (*field).to_owned(),
                self.0
                    .get(*field)
                    .cloned()
                    .unwrap_or_else(|| Value::from("")),
            )
        };
        Value::Object(fields.iter().map(show).collect())
    }

    /// Takes over these fields of `other` where they aren't blank: "blank means unchanged".
    pub(super) fn take_texts(&mut self, other: &Self, fields: &[&str]) {
        for field in fields {
            if let Some(text) = other.text(field) {
                self.set(field, text);
            }
        }
    }

    /// Takes over these decimal fields of `other` where they aren't blank.
    pub(super) fn take_amounts(
        &mut self,
        other: &Self,
        fields: &[&'static str],
    ) -> Result<(), Refusal> {
        for field in fields {
            if let Some(amount) = other.amount_given(field)? {
                self.set(field, amount.json());
            }
        }
        Ok(())
    }

    /// Takes over these fields of `other` as they are, where present: uids keep their spelling.
    pub(super) fn take_values(&mut self, other: &Self, fields: &[&str]) {
        for field in fields {
            if let Some(value) = other.get(field) {
                self.set(field, value.clone());
            }
        }
    }
}

/// A time window of a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Its first second.
    pub(super) start: Moment,
    /// Its last second.
    pub(super) end: Moment,
}

impl Window {
    /// Whether the record's date field lies in the window, both ends included.
    pub(super) fn holds(&self, record: &Record, field: &str) -> bool {
        let moment = record.text(field).and_then(|text| Moment::parse(&text));
        moment.is_some_and(|moment| self.start <= moment && moment <= self.end)
    }

    /// Whether the record's date field lies in the window, its end excluded: for fields named `excludeEndTime`.
    pub(super) fn holds_before_end(&self, record: &Record, field: &str) -> bool {
        self.holds(record, field) && !record.is(field, &self.end.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::record::Record;
    use crate::simulator::reply::Refusal;

    fn record(value: Value) -> Record {
        Record::from_value(value).unwrap()
    }

    #[test]
    fn an_id_is_the_same_as_a_number_and_as_a_string() {
        assert!(
            record(json!({"uid": 1_366_004_607_492_564_649_i64})).is("uid", "1366004607492564649")
        );
        assert!(record(json!({"uid": "1366004607492564649"})).is("uid", "1366004607492564649"));
    }

    #[test]
    fn a_blank_field_is_as_good_as_none() {
        let record = record(json!({"a": "", "b": null, "c": "  "}));
        for field in ["a", "b", "c", "d"] {
            assert_eq!(record.need(field), Err(Refusal::FieldMissing(field)));
        }
    }

    #[test]
    fn blank_fields_change_nothing_and_others_are_taken() {
        let mut kept = record(json!({"name": "old", "phone": "1", "stock": 5}));
        let update = record(json!({"name": "new", "phone": "", "stock": "7.50"}));
        kept.take_texts(&update, &["name", "phone"]);
        kept.take_amounts(&update, &["stock"]).unwrap();
        assert_eq!(
            kept,
            record(json!({"name": "new", "phone": "1", "stock": 7.5}))
        );
    }
}
