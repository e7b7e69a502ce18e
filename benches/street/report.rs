//! Figures, what is demanded of them, and how they are shown: a Markdown table and a JSON file.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::Result;

/// The same thing measured in several rounds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// Of an even number, the upper one of the two in the middle; 0 of none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    fn ends(&self) -> (f64, f64) {
        let ends = |(least, most): (f64, f64), each: &f64| (least.min(*each), most.max(*each));
        self.0.iter().fold((f64::MAX, f64::MIN), ends)
    }

    fn shown(&self) -> String {
        match self.0.len() {
            0 => "-".to_owned(),
            1 => number(self.median()),
            _ => {
                let (least, most) = self.ends();
                format!(
                    "{} ({} to {})",
                    number(self.median()),
                    number(least),
                    number(most)
                )
            }
        }
    }
}

/// Three digits are as many as there's truth in.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// One thing that was measured of several.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// In what.
    pub unit: &'static str,
    /// Of whom, and what came out in each round.
    pub samples: Vec<(String, Samples)>,
    /// What is demanded.
    pub demands: Vec<Demand>,
}

/// What a figure has to be.
#[derive(Clone, Debug, Serialize)]
pub struct Demand {
    /// Of what, such as `x nginx + Lua`.
    pub of: String,
    /// What it is.
    pub value: f64,
    /// It mustn't be more.
    pub must: Option<f64>,
    /// It would better not be more.
    pub aim: Option<f64>,
    /// More is better: neither must it be less.
    pub least: bool,
}

impl Demand {
    /// Less is better.
    pub fn at_most(of: String, value: f64, must: Option<f64>, aim: Option<f64>) -> Self {
        Self {
            of,
            value,
            must,
            aim,
            least: false,
        }
    }

    fn holds(&self, limit: f64) -> bool {
        if self.least {
            self.value >= limit
        } else {
            self.value <= limit
        }
    }

    /// It is as it must be.
    pub fn is_met(&self) -> bool {
        self.must.is_none_or(|must| self.holds(must))
    }

    fn shown(&self) -> [String; 4] {
        let sign = if self.least { ">=" } else { "<=" };
        let limit = |limit: Option<f64>| {
            limit.map_or_else(|| "-".to_owned(), |limit| format!("{sign} {limit}"))
        };
        let verdict = match (self.must, self.aim) {
            (Some(must), _) if !self.holds(must) => "**missed**",
            (_, Some(aim)) if self.holds(aim) => "aim reached",
            (Some(_), _) => "met",
            (None, _) => "-",
        };
        [
            format!("{} {}", number(self.value), self.of),
            limit(self.must),
            limit(self.aim),
            verdict.to_owned(),
        ]
    }
}

impl Figure {
    /// One without demands.
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        samples: Vec<(impl Into<String>, Samples)>,
    ) -> Self {
        let samples = samples.into_iter();
        Self {
            name: name.into(),
            unit,
            samples: samples
                .map(|(whose, samples)| (whose.into(), samples))
                .collect(),
            demands: Vec::new(),
        }
    }

    /// Of this one.
    pub fn median(&self, whose: &str) -> f64 {
        self.samples
            .iter()
            .find(|(name, _)| name == whose)
            .map_or(0.0, |(_, samples)| samples.median())
    }

    /// The first one's median against another's.
    #[must_use]
    pub fn against(self, other: &'static str, must: Option<f64>, aim: Option<f64>) -> Self {
        let value = self.first() / self.median(other);
        self.demand(Demand::at_most(format!("x {other}"), value, must, aim))
    }

    /// The first one's median by itself.
    #[must_use]
    pub fn itself(self, must: Option<f64>, aim: Option<f64>) -> Self {
        let (unit, value) = (self.unit.to_owned(), self.first());
        self.demand(Demand::at_most(unit, value, must, aim))
    }

    fn first(&self) -> f64 {
        self.samples
            .first()
            .map_or(0.0, |(_, samples)| samples.median())
    }

    /// Another demand.
    #[must_use]
    pub fn demand(mut self, demand: Demand) -> Self {
        self.demands.push(demand);
        self
    }
}

/// All that a benchmark found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What was measured, on what, how noisy it was; sentences.
    pub notes: Vec<String>,
    /// What came out.
    pub figures: Vec<Figure>,
}

impl Report {
    /// A Markdown table; a demand has a line of its own.
    pub fn markdown(&self) -> String {
        let mut lines = vec![
            "| figure | measured: median (least to most) | compared | must | aim | |".to_owned(),
            "|---|---|---|---|---|---|".to_owned(),
        ];
        for figure in &self.figures {
            let measured: Vec<_> = figure
                .samples
                .iter()
                .map(|(whose, samples)| format!("{whose} {}", samples.shown()))
                .collect();
            let first = [
                format!("{}, {}", figure.name, figure.unit),
                measured.join("; "),
            ];
            let demands = figure.demands.iter().map(Demand::shown);
            let demands: Vec<_> = if figure.demands.is_empty() {
                vec![["-"; 4].map(str::to_owned)]
            } else {
                demands.collect()
            };
            for (at, demand) in demands.iter().enumerate() {
                let [name, measured] = if at == 0 {
                    first.clone()
                } else {
                    Default::default()
                };
                lines.push(format!("| {name} | {measured} | {} |", demand.join(" | ")));
            }
        }
        lines.push(String::new());
        lines.extend(self.notes.iter().map(|note| format!("- {note}")));
        lines.join("\n") + "\n"
    }

    /// Prints the table, and writes it and the JSON file under `target/performance`. Says whether all is as it must be.
    pub fn publish(&self, name: &str) -> Result<bool> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/performance");
        fs::create_dir_all(&folder)?;
        let table = self.markdown();
        fs::write(folder.join(format!("{name}.md")), &table)?;
        fs::write(
            folder.join(format!("{name}.json")),
            serde_json::to_string_pretty(self)?,
        )?;
        println!("\n{table}\nwritten to target/performance/{name}.md and .json");
        let missed: Vec<_> = self
            .figures
            .iter()
            .filter(|figure| !figure.demands.iter().all(Demand::is_met))
            .map(|figure| figure.name.as_str())
            .collect();
        if !missed.is_empty() {
            println!("missed: {}", missed.join(", "));
        }
        Ok(missed.is_empty())
    }
}
