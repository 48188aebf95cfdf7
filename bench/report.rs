//! The results of the runs as figures, with the floor and the target.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// The target of a figure. The report shows it, and asserts nothing.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// No target.
    None,
    /// At most this value.
    AtMost(f64),
    /// Exactly this value.
    Exactly(f64),
    /// At most this multiple of the floor.
    Ratio(f64),
    /// At least this multiple of the floor.
    #[allow(dead_code, reason = "only the benchmark of the relay has one")]
    AtLeastRatio(f64),
    /// At most this amount above the floor.
    Above(f64),
}

/// One row of the table.
#[derive(Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    /// The value of each run.
    runs: Vec<f64>,
    /// The floor of each run; empty without a floor.
    floor: Vec<f64>,
    target: Target,
}

impl Figure {
    /// Creates a figure from the values of the runs.
    pub fn new(name: impl Into<String>, unit: &'static str, runs: impl IntoIterator<Item = f64>) -> Self {
        Self { name: name.into(), unit, runs: runs.into_iter().collect(), floor: vec![], target: Target::None }
    }

    /// Adds the floor's values of the same runs.
    pub fn over(mut self, floor: impl IntoIterator<Item = f64>) -> Self {
        self.floor = floor.into_iter().collect();
        self
    }

    /// Adds a target.
    pub fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Returns the median over the runs of a combination of value and floor.
    fn compared(&self, combine: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let pairs: Vec<_> = self.runs.iter().zip(&self.floor).map(|(run, floor)| combine(*run, *floor)).collect();
        (!pairs.is_empty()).then(|| median(&pairs))
    }

    fn ratio(&self) -> Option<f64> {
        self.compared(|run, floor| run / floor)
    }

    fn met(&self) -> Option<bool> {
        let value = median(&self.runs);
        match self.target {
            Target::None => None,
            Target::AtMost(limit) => Some(value <= limit),
            Target::Exactly(wanted) => Some(self.runs.iter().all(|run| (run - wanted).abs() < 1e-9)),
            Target::Ratio(limit) => self.ratio().map(|ratio| ratio <= limit),
            Target::AtLeastRatio(limit) => self.ratio().map(|ratio| ratio >= limit),
            Target::Above(limit) => self.compared(|run, floor| run - floor).map(|above| above <= limit),
        }
    }

    fn row(&self) -> String {
        let target = match self.target {
            Target::None => String::new(),
            Target::AtMost(limit) => format!("≤ {}", number(limit)),
            Target::Exactly(wanted) => number(wanted),
            Target::Ratio(limit) => format!("≤ {limit} ×"),
            Target::AtLeastRatio(limit) => format!("≥ {limit} ×"),
            Target::Above(limit) => format!("≤ floor + {}", number(limit)),
        };
        let met = self.met().map_or("", |met| if met { "yes" } else { "no" });
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let (least, most) = self.runs.iter().fold((f64::MAX, f64::MIN), |(a, b), run| (a.min(*run), b.max(*run)));
        let unit = if self.unit.is_empty() { String::new() } else { format!(", {}", self.unit) };
        format!(
            "| {}{unit} | {} | {} | {} | {ratio} | {target} | {met} |",
            self.name,
            number(median(&self.runs)),
            number(least),
            number(most)
        )
    }
}

/// All figures, and notes about their runs.
#[derive(Default, Serialize)]
pub struct Report {
    conditions: Vec<String>,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    /// Adds a note about the machine or the runs.
    pub fn condition(&mut self, line: impl Into<String>) {
        let line = line.into();
        println!("{line}");
        self.conditions.push(line);
    }

    /// Adds a note about a figure.
    pub fn note(&mut self, line: impl Into<String>) {
        let line = line.into();
        println!("  {line}");
        self.notes.push(line);
    }

    /// Adds a row.
    pub fn add(&mut self, figure: Figure) {
        println!("  {}", figure.row());
        self.figures.push(figure);
    }

    /// Prints the table, and writes it with all values into a folder.
    pub fn finish(&self, folder: &Path) {
        let mut table =
            String::from("| figure | median | min | max | ÷ floor | target | met |\n|---|---|---|---|---|---|---|\n");
        for figure in &self.figures {
            writeln!(table, "{}", figure.row()).unwrap();
        }
        println!("\n{table}\n{}", self.conditions.join("\n"));
        fs::write(folder.join("table.md"), table).unwrap();
        fs::write(folder.join("results.json"), serde_json::to_string_pretty(self).unwrap()).unwrap();
        println!("\nwritten: {}", folder.display());
    }
}

/// Returns the folder of the results: `target/bench`.
pub fn folder() -> PathBuf {
    let mut members = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = members.find(|folder| folder.join("Cargo.lock").exists()).unwrap();
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the median: the middle value, or the mean of the two middle values.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// Returns the quantile: the value that this share of all values does not exceed.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank of thousands")]
    let rank = (share * count(sorted.len())).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Sorts values in ascending order.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Converts a count to a floating-point number.
pub fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}

/// Formats a value with few digits: the larger the value, the fewer decimals.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
