//! How long a benchmark takes.

/// What the command line says of it.
#[derive(Debug)]
pub struct Settings {
    /// Each with fresh processes.
    pub rounds: usize,
    /// Before each window, in milliseconds.
    pub warm_up_ms: u64,
    /// Of each window, in milliseconds.
    pub window_ms: u64,
    /// Whether figures that aren't as they must be make it fail.
    pub demands: bool,
    only: Option<String>,
}

impl Settings {
    /// Of this process: so many rounds unless it's told otherwise. `cargo bench` says `--bench`; without it, it's only to be seen that
    /// all works.
    pub fn from_arguments(rounds: u64) -> Self {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let after = |name: &str| {
            let at = arguments.iter().position(|each| each == name)?;
            arguments.get(at + 1).cloned()
        };
        let number = |name: &str, default: u64| {
            after(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default)
        };
        let demands = arguments.iter().any(|each| each == "--bench");
        let (rounds, warm_up_ms, window_ms) = if demands {
            (rounds, 300, 1_200)
        } else {
            (1, 50, 100)
        };
        Self {
            rounds: usize::try_from(number("--rounds", rounds)).unwrap_or(usize::MAX),
            warm_up_ms: number("--warm-up", warm_up_ms),
            window_ms: number("--window", window_ms),
            demands,
            only: after("--only"),
        }
    }

    /// Whether this one is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    }
}
