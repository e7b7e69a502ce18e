//! A table of records in the order they came, and the vendor's way of paging through one.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::simulator::record::Record;
use crate::simulator::reply::Data;

/// Records by row id, which only grows.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<u64, Record>,
}

impl Table {
    /// Adds the record after all others and gives its row id. A full table forgets its oldest row: a stand-in that runs for
    /// weeks must not grow for weeks.
    pub(super) fn add(&mut self, record: Record) -> u64 {
        let id = self.next_id();
        self.put(id, record);
        id
    }

    /// Puts the record at a row id of the seed's choice.
    pub(super) fn put(&mut self, id: u64, record: Record) {
        self.rows.insert(id, record);
        if self.rows.len() > ROWS_MAX {
            self.rows.pop_first();
        }
    }

    /// The row id that `add` gives next.
    pub(super) fn next_id(&self) -> u64 {
        self.rows.last_key_value().map_or(1, |(id, _)| id + 1)
    }

    /// The first record whose field has this text.
    pub(super) fn find(&self, field: &str, text: &str) -> Option<&Record> {
        self.first(|record| record.is(field, text))
    }

    /// The first record that `wanted` picks.
    pub(super) fn first(&self, wanted: impl Fn(&Record) -> bool) -> Option<&Record> {
        self.rows.values().find(|record| wanted(record))
    }

    /// The first record whose field has this text, to be changed.
    pub(super) fn find_mut(&mut self, field: &str, text: &str) -> Option<&mut Record> {
        self.rows.values_mut().find(|record| record.is(field, text))
    }

    /// The list of those records that `wanted` picks, whole: for look-ups that the vendor doesn't page.
    pub(super) fn list(&self, fields: &[&str], wanted: impl Fn(&Record) -> bool) -> Data {
        let picked = self.rows.values().filter(|record| wanted(record));
        Data::Value(picked.map(|record| record.shown(fields)).collect())
    }

    /// The next page of those records that `wanted` picks (contract, section 3, "Pagination").
    pub(super) fn page(
        &self,
        call: &Record,
        direction: Direction,
        fields: &[&str],
        wanted: impl Fn(&Record) -> bool,
    ) -> Data {
        let mark = match Mark::read(call, direction) {
            Mark::Foreign(echo) => return page_of(echo, Vec::new()),
            Mark::Start => None,
            Mark::After(id) => Some(id),
        };
        let rows: Box<dyn Iterator<Item = (&u64, &Record)>> = match direction {
            Direction::Rising => {
                Box::new(self.rows.range(mark.map_or(0, |id| id.saturating_add(1))..))
            }
            Direction::Falling => Box::new(self.rows.range(..mark.unwrap_or(u64::MAX)).rev()),
        };
        let picked: Vec<(&u64, &Record)> = rows
            .filter(|(_, record)| wanted(record))
            .take(PAGE_SIZE)
            .collect();
        let last = picked.last().map(|(id, _)| **id).or(mark).unwrap_or(0);
        let next = json!({"parameterType": direction.name(), "parameterValue": last.to_string()});
        page_of(
            next,
            picked
                .iter()
                .map(|(_, record)| record.shown(fields))
                .collect(),
        )
    }
}

/// Which way a paged query walks, and so which `parameterType` its mark has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Oldest first.
    Rising,
    /// Newest first.
    Falling,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Rising => "LAST_RESULT_MAX_ID",
            Self::Falling => "LAST_RESULT_MIN_ID",
        }
    }
}

/// Where the caller's `postBackParameter` says that the last page ended.
enum Mark {
    Start,
    After(u64),
    /// A mark that this query never gave out, such as the `abcd` of the vendor's page. Assumed: there is nothing after it,
    /// and it's echoed.
    Foreign(Value),
}

impl Mark {
    fn read(call: &Record, direction: Direction) -> Self {
        let Some(value) = call.get("postBackParameter") else {
            return Self::Start;
        };
        let Some(mark) = Record::from_value(value.clone()) else {
            return Self::Foreign(value.clone());
        };
        let Some(text) = mark.text("parameterValue") else {
            return Self::Start;
        };
        match text.parse() {
            Ok(id) if mark.is("parameterType", direction.name()) => Self::After(id),
            _ => Self::Foreign(mark.shown(&["parameterType", "parameterValue"])),
        }
    }
}

/// A page of nothing, for lists that the stand-in doesn't keep.
pub(super) fn empty_page(call: &Record) -> Data {
    Table::default().page(call, Direction::Rising, &[], |_| false)
}

fn page_of(mark: Value, result: Vec<Value>) -> Data {
    Data::Value(json!({"postBackParameter": mark, "result": result, "pageSize": PAGE_SIZE}))
}

/// What the vendor's pages print as `pageSize`.
pub(super) const PAGE_SIZE: usize = 100;

/// The most rows that one table keeps.
const ROWS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::record::Record;
    use crate::simulator::reply::Data;
    use crate::simulator::table::Direction;
    use crate::simulator::table::ROWS_MAX;
    use crate::simulator::table::Table;

    fn record(value: Value) -> Record {
        Record::from_value(value).unwrap()
    }

    fn table(rows: usize) -> Table {
        let mut table = Table::default();
        for number in 1..=rows {
            table.add(record(json!({"n": number})));
        }
        table
    }

    fn page(table: &Table, call: &Value, direction: Direction) -> Record {
        match table.page(&record(call.clone()), direction, &["n"], |_| true) {
            Data::Value(page) => record(page),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn echoing_the_mark_walks_through_every_row_once() {
        for direction in [Direction::Rising, Direction::Falling] {
            let table = table(250);
            let mut call = json!({});
            let mut sizes = Vec::new();
            let mut seen = Vec::new();
            loop {
                let page = page(&table, &call, direction);
                let result = page.need_list("result").unwrap();
                sizes.push(result.len());
                seen.extend(result.iter().map(|row| row["n"].as_u64().unwrap()));
                if result.len() < 100 {
                    break;
                }
                call = json!({"postBackParameter": page.get("postBackParameter")});
            }
            assert_eq!(sizes, [100, 100, 50]);
            if direction == Direction::Falling {
                seen.reverse();
            }
            assert_eq!(seen, (1..=250).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mark_of_another_origin_ends_the_walk_and_is_echoed() {
        let mark = json!({"parameterType": "abcd", "parameterValue": "lmnop"});
        let page = page(
            &table(3),
            &json!({"postBackParameter": mark}),
            Direction::Rising,
        );
        assert_eq!(page.get("result"), Some(&json!([])));
        assert_eq!(page.get("postBackParameter"), Some(&mark));
    }

    #[test]
    fn a_full_table_forgets_its_oldest_row() {
        let table = table(ROWS_MAX + 1);
        assert!(table.find("n", "1").is_none());
        assert!(table.find("n", "2").is_some());
    }
}
