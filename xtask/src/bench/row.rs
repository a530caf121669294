//! One measured figure.

use serde_json::{Value, json};

/// What was measured, beside what.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is, with its unit.
    pub name: String,
    /// Ours.
    pub ours: f64,
    /// The peer's, measured in the same run on the same machine; none where there is no peer, or it is not here.
    pub peer: Option<f64>,
    /// What we aim at.
    pub target: Target,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Below this, in the row's unit.
    Below(f64),
    /// At least this, in the row's unit.
    AtLeast(f64),
    /// At most this, in the row's unit.
    AtMost(f64),
    /// At least so many times the peer's.
    TimesPeer(f64),
    /// At most so many times the peer's.
    AtMostTimesPeer(f64),
    /// No further from the peer's than this part of it.
    WithinOfPeer(f64),
    /// Only to know.
    None,
}

impl Row {
    /// Ours divided by the peer's.
    pub fn ratio(&self) -> Option<f64> {
        self.peer.filter(|&peer| peer != 0.0).map(|peer| self.ours / peer)
    }

    /// Whether the target is met; none when there is none, or the peer is missing.
    pub fn met(&self) -> Option<bool> {
        match self.target {
            Target::Below(limit) => Some(self.ours < limit),
            Target::AtLeast(least) => Some(self.ours >= least),
            Target::AtMost(most) => Some(self.ours <= most),
            Target::TimesPeer(least) => self.ratio().map(|ratio| ratio >= least),
            Target::AtMostTimesPeer(most) => self.ratio().map(|ratio| ratio <= most),
            Target::WithinOfPeer(part) => self.ratio().map(|ratio| (ratio - 1.0).abs() <= part),
            Target::None => None,
        }
    }

    /// The row for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio(),
            "target": self.target.text(),
            "met": self.met(),
        })
    }

    fn cells(&self) -> [String; 6] {
        let optional = |value: Option<f64>| value.map_or("–".to_owned(), figure);
        [
            self.name.clone(),
            figure(self.ours),
            optional(self.peer),
            optional(self.ratio()),
            self.target.text(),
            self.met().map_or("–", |met| if met { "yes" } else { "no" }).to_owned(),
        ]
    }
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::Below(limit) => format!("below {}", figure(limit)),
            Self::AtLeast(least) => format!("at least {}", figure(least)),
            Self::AtMost(most) => format!("at most {}", figure(most)),
            Self::TimesPeer(least) => format!("at least {least} × the peer's"),
            Self::AtMostTimesPeer(most) => format!("at most {most} × the peer's"),
            Self::WithinOfPeer(part) => format!("within {part} of the peer's"),
            Self::None => "–".to_owned(),
        }
    }
}

/// A figure with about four digits.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0..1.0 => format!("{value:.4}"),
        1.0..10.0 => format!("{value:.3}"),
        10.0..100.0 => format!("{value:.2}"),
        100.0..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        "| name | ours | peer | ratio | target | met |\n| --- | ---: | ---: | ---: | --- | --- |".to_owned();
    for row in rows {
        text += &format!("\n| {} |", row.cells().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, peer: Option<f64>, target: Target) -> Row {
        Row { name: "x".into(), ours, peer, target }
    }

    #[test]
    fn a_target_is_met_or_not_or_unknown() {
        assert_eq!(row(2.0, Some(1.0), Target::TimesPeer(1.0)).met(), Some(true));
        assert_eq!(row(0.9, Some(1.0), Target::TimesPeer(1.0)).met(), Some(false));
        assert_eq!(row(2.0, None, Target::TimesPeer(1.0)).met(), None, "no peer, no verdict");
        assert_eq!(row(49.0, None, Target::Below(50.0)).met(), Some(true));
        assert_eq!(row(0.74, None, Target::AtLeast(0.75)).met(), Some(false));
        assert_eq!(row(3.70, Some(3.671), Target::AtMostTimesPeer(1.01)).met(), Some(true));
    }

    #[test]
    fn a_row_has_six_cells() {
        let text = table(&[row(1234.56, Some(1000.0), Target::TimesPeer(1.0))]);
        assert!(text.ends_with("| x | 1235 | 1000 | 1.235 | at least 1 × the peer's | yes |"), "{text}");
    }

    #[test]
    fn json_says_null_for_what_is_not_known() {
        let json = row(1.0, None, Target::None).to_json();
        assert!(json["peer"].is_null() && json["ratio"].is_null() && json["met"].is_null());
    }
}
