//! Where events go: standard error, as JSON or for people.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;

use crate::clock::Clock;
use crate::observe::json::Json;
use crate::observe::lines::Lines;
use crate::observe::lines::Writer;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// One line for people, in colour on a terminal unless `NO_COLOR` is set.
    Human,
}

/// Which events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What must be acted on.
    Error,
    /// What may have to be.
    Warn,
    /// One line for each request too.
    Info,
    /// Connections too.
    Debug,
    /// The same: nothing of ours is finer.
    Trace,
}

/// What an operator chooses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// JSON or for people.
    pub format: Format,
    /// The least severe level that is written.
    pub level: Level,
    /// `NO_COLOR` is set.
    pub plain: bool,
}

/// An error and what caused it, each once, for the log alone.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// What somebody else has chosen, as it can stand in a log and on a terminal: nothing in it can move a cursor, begin a line or turn the
/// direction of writing, and it has at most so many characters.
#[must_use]
pub fn harmless(text: &str, characters_max: usize) -> String {
    let mut short = String::new();
    // One more than there's room for shows that something is cut.
    let (mut count, mut last_fitting) = (0, 0);
    for character in text.chars() {
        let escaped = match character {
            '"' | '\'' | '\\' => character.to_string(),
            other => other.escape_debug().to_string(),
        };
        count += escaped.chars().count();
        if count > characters_max {
            short.truncate(last_fitting);
            short.push('…');
            break;
        }
        short.push_str(&escaped);
        if count < characters_max {
            last_fitting = short.len();
        }
    }
    short
}

/// Changes the level while events are written, and knows how many weren't.
pub struct Control {
    set: Box<dyn Fn(Level) + Send + Sync>,
    lines: Lines,
}

impl Control {
    /// From now on what is less severe isn't written.
    pub fn set(&self, level: Level) {
        (self.set)(level);
    }

    /// Lines that were dropped so far because nobody took them in time.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.lines.dropped()
    }
}

fn filter(level: Level) -> Targets {
    let own = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // Libraries write what they read as it is: the HTTP/2 library, for one, the path of a malformed request, whatever is in it and however often.
    Targets::new()
        .with_default(LevelFilter::ERROR)
        .with_target("kybio_gateway", own)
        .with_target("h2", LevelFilter::OFF)
}

/// The subscriber that writes to standard error through a thread of its own. The caller makes it the default one, and keeps the writer
/// to the end.
pub fn subscriber(settings: &Settings) -> (Box<dyn Subscriber + Send + Sync>, Control, Writer) {
    let (level, handle) = reload::Layer::new(filter(settings.level));
    let (lines, writer) = Lines::start(std::io::stderr());
    let control = Control {
        set: Box::new(move |level| {
            // It fails only when the subscriber is gone, and then nobody writes.
            let _ = handle.reload(filter(level));
        }),
        lines: lines.clone(),
    };
    let clock = Clock::system();
    let registry = tracing_subscriber::registry().with(level);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match settings.format {
        Format::Json => Box::new(registry.with(Json { lines, clock })),
        Format::Human => {
            let colour = !settings.plain && std::io::stderr().is_terminal();
            let layer = fmt::layer().with_writer(lines);
            Box::new(registry.with(layer.with_ansi(colour).with_target(false)))
        }
    };
    (subscriber, control, writer)
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_could_upset_a_log_is_escaped_and_cut() {
        for (text, expected) in [
            ("CN=\"O\\'Neill\", 银豹", "CN=\"O\\'Neill\", 银豹"),
            ("a\nb\r\0", "a\\nb\\r\\0"),
            ("\u{1b}[31m\u{9b}\u{202e}", "\\u{1b}[31m\\u{9b}\\u{202e}"),
            ("\u{2028}\u{feff}", "\\u{2028}\\u{feff}"),
        ] {
            assert_eq!(harmless(text, 100), expected);
        }
        assert_eq!(harmless("123456789", 10), "123456789");
        assert_eq!(harmless("1234567890", 10), "1234567890");
        assert_eq!(harmless("12345678901", 10), "123456789…");
        assert_eq!(harmless("12345\u{202e}", 10), "12345…");
    }
}
