//! Events as JSON, one object a line: `timestamp`, `level`, the event's own fields in their order, `target`. In one pass into one buffer: the
//! library's own writer takes seven times as long, which was a fifth of a request.

use std::fmt;
use std::fmt::Write;
use std::time::SystemTime;

use humantime::format_rfc3339_micros;
use tracing::Event;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::clock::Clock;
use crate::observe::lines::Lines;

/// An ordinary request's line fits.
const LINE_LENGTH: usize = 1_024;

/// Writes events to these lines.
#[derive(Debug)]
pub(super) struct Json {
    pub(super) lines: Lines,
    pub(super) clock: Clock,
}

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line(Vec::with_capacity(LINE_LENGTH));
        line.0.push(b'{');
        line.name("timestamp");
        let now = SystemTime::UNIX_EPOCH + self.clock.since_epoch();
        line.shown(format_args!("{}", format_rfc3339_micros(now)));
        line.text("level", metadata.level().as_str());
        event.record(&mut line);
        line.text("target", metadata.target());
        line.0.extend_from_slice(b"}\n");
        self.lines.push(&line.0);
    }
}

/// A line that is being written.
struct Line(Vec<u8>);

impl Line {
    /// A member's name, after which its value comes.
    fn name(&mut self, name: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        // Names of fields and targets are Rust's: nothing in them needs an escape.
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        if is_plain(text.as_bytes()) {
            self.0.push(b'"');
            self.0.extend_from_slice(text.as_bytes());
            self.0.push(b'"');
        } else {
            self.value(text);
        }
    }

    /// What a value shows of itself, as a string.
    fn shown(&mut self, value: fmt::Arguments<'_>) {
        let start = self.0.len();
        self.0.push(b'"');
        // Memory never fails.
        let _ = self.write_fmt(value);
        if is_plain(&self.0[start + 1..]) {
            self.0.push(b'"');
        } else {
            let text = self.0.split_off(start);
            self.value(String::from_utf8_lossy(&text[1..]));
        }
    }

    fn value(&mut self, value: impl serde::Serialize) {
        // Neither memory nor text fails.
        let _ = serde_json::to_writer(&mut self.0, &value);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field.name());
        self.value(value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field.name());
        self.value(value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field.name());
        self.value(value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field.name());
        self.value(value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field.name());
        self.shown(format_args!("{value:?}"));
    }
}

/// In a string of JSON it stands as it is (RFC 8259 section 7), as nearly all do. To look at all bytes is faster than to stop at the first.
fn is_plain(text: &[u8]) -> bool {
    text.iter().fold(true, |plain, byte| {
        plain & !matches!(byte, ..0x20 | b'"' | b'\\')
    })
}

#[cfg(test)]
mod tests {
    use super::Json;
    use crate::clock::Clock;
    use crate::observe::lines::Lines;
    use serde_json::Value;
    use std::io;
    use std::sync::Arc;
    use std::sync::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_with_the_fields_in_their_order_whatever_is_in_them() {
        let written = Written::default();
        let (lines, writer) = Lines::start(written.clone());
        let subscriber = tracing_subscriber::registry().with(Json {
            lines,
            clock: Clock::system(),
        });
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                target: "here",
                odd = "a \"b\"\n\\ \u{1} 银豹",
                shown = %"say \"c\"\n",
                debug = ?Some("d"),
                whole = 3.0,
                number = -7,
                large = u64::MAX,
                yes = true,
                nothing = None::<&str>,
                "said \"e\""
            );
            tracing::warn!("second");
        });
        drop(writer);
        let text = String::from_utf8(written.0.lock().expect("no panic").clone()).expect("text");
        let (first, second) = text.trim_end().split_once('\n').expect("two lines");
        let (time, rest) = first.split_once("Z\",").expect("UTC");
        assert!(time.starts_with("{\"timestamp\":\"2"), "{time}");
        let expected = r#""level":"INFO","message":"said \"e\"","odd":"a \"b\"\n\\ \u0001 银豹","shown":"say \"c\"\n","debug":"Some(\"d\")","whole":3.0,"number":-7,"large":18446744073709551615,"yes":true,"target":"here"}"#;
        assert_eq!(rest, expected);
        let second: Value = serde_json::from_str(second).expect("JSON");
        assert_eq!(
            (&second["level"], &second["message"]),
            (&"WARN".into(), &"second".into())
        );
    }
}
