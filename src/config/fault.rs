//! One thing that's wrong with a configuration: where it stands, which key, what was found, what was meant.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file; line and column are counted from 1.
    File {
        /// As it was named, or found by an include.
        path: PathBuf,
        /// With its column, if known.
        line: Option<(usize, usize)>,
    },
    /// In an environment variable of this name.
    Environment(String),
    /// In `--set`.
    Flag,
    /// Nowhere.
    #[default]
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                path,
                line: Some((line, column)),
            } => write!(f, "{}:{line}:{column}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("--set"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands.
    pub place: Place,
    /// The key's path; empty for a whole file.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What was meant, or what to do.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// All that's wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// In the order of their places, as who mends them goes through the files.
    #[must_use]
    pub fn in_order(mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|one, other| one.place.cmp(&other.place));
        Self(faults)
    }
}

/// A text in the spelling of a file.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // Some may not be in a file, and some do things to terminals.
            control if control.is_control() => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A path as a file writes it.
pub(super) fn dotted(path: &[impl AsRef<str>]) -> String {
    let bare = |segment: &str| {
        !segment.is_empty()
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    path.iter()
        .map(|segment| {
            let segment = segment.as_ref();
            if bare(segment) {
                segment.to_owned()
            } else {
                quoted(segment)
            }
        })
        .collect::<Vec<_>>()
        .join(".")
}
