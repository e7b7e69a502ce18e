//! Dates as the vendor writes them: `yyyy-MM-dd HH:mm:ss` in the merchant's local time, UTC+8 (contract, section 3, "Dates").

use std::fmt;
use std::time::Duration;

use time::Date;
use time::Month;
use time::OffsetDateTime;
use time::PrimitiveDateTime;
use time::Time;

/// A second of the merchant's local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(PrimitiveDateTime);

impl Moment {
    /// The local time at `since_epoch` after 1970-01-01 UTC.
    pub(super) fn local(since_epoch: Duration) -> Self {
        let seconds = i64::try_from((since_epoch + EAST).as_secs()).unwrap_or(i64::MAX);
        // A clock beyond the year 9999 isn't worth an error path: it reads as 1970.
        let time =
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self(PrimitiveDateTime::new(time.date(), time.time()))
    }

    /// Reads `yyyy-MM-dd HH:mm:ss`, or a date alone, which means its midnight.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (date, time) = text
            .trim()
            .split_once(' ')
            .unwrap_or_else(|| (text.trim(), "00:00:00"));
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(time, ':')?;
        let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
        let date = Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()?;
        let part = |number: i32| u8::try_from(number).ok();
        let time = Time::from_hms(part(hour)?, part(minute)?, part(second)?).ok()?;
        Some(Self(PrimitiveDateTime::new(date, time)))
    }

    /// Whether `later` is at most `days` after this moment, and not before it.
    pub(super) fn is_within(self, later: Self, days: u64) -> bool {
        let span = Duration::try_from(later.0 - self.0);
        span.is_ok_and(|span| span <= Duration::from_secs(days * DAY_SECONDS))
    }

    /// The local day, `yyyy-MM-dd`: the quota's counting period.
    pub(super) fn day(self) -> String {
        let date = self.0.date();
        format!(
            "{:04}-{:02}-{:02}",
            date.year(),
            u8::from(date.month()),
            date.day()
        )
    }

    /// The digits alone, `yyyyMMddHHmmss`, of which order and ticket numbers are made.
    pub(super) fn digits(self) -> String {
        self.to_string()
            .chars()
            .filter(char::is_ascii_digit)
            .collect()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.0.time();
        write!(
            f,
            "{} {:02}:{:02}:{:02}",
            self.day(),
            time.hour(),
            time.minute(),
            time.second()
        )
    }
}

fn numbers(text: &str, separator: char) -> Option<[i32; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let is_number =
            (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { part.parse().ok() } else { None }
    });
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

/// UTC+8 has no summer time.
const EAST: Duration = Duration::from_secs(8 * 60 * 60);

const DAY_SECONDS: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::simulator::moment::Moment;

    #[test]
    fn local_time_is_eight_hours_ahead_of_utc() {
        // 2015-07-22 04:51:28 UTC, the stamp on the vendor's pages.
        let moment = Moment::local(Duration::from_millis(1_437_540_688_233));
        assert_eq!(moment.to_string(), "2015-07-22 12:51:28");
        assert_eq!(moment.digits(), "20150722125128");
    }

    #[test]
    fn a_day_begins_at_local_midnight() {
        assert_eq!(
            Moment::local(Duration::from_secs(57_599)).day(),
            "1970-01-01"
        );
        assert_eq!(
            Moment::local(Duration::from_secs(57_600)).day(),
            "1970-01-02"
        );
    }

    #[test]
    fn a_date_alone_is_its_midnight_and_nonsense_is_refused() {
        assert_eq!(
            Moment::parse("2017-10-27").unwrap().to_string(),
            "2017-10-27 00:00:00"
        );
        for text in [
            "",
            "2017-13-01",
            "2017-02-30",
            "2017-10-27 25:00:00",
            "27.10.2017",
            "2017-10-27 10:00",
            "2017-10-27T10:00:00",
            "2017-1-+1",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_window_is_measured_to_the_second() {
        let start = Moment::parse("2016-03-01 00:00:00").unwrap();
        assert!(start.is_within(Moment::parse("2016-03-02 00:00:00").unwrap(), 1));
        assert!(!start.is_within(Moment::parse("2016-03-02 00:00:01").unwrap(), 1));
        assert!(!start.is_within(Moment::parse("2016-02-29 23:59:59").unwrap(), 1));
    }
}
