//! Numbers, sizes, times and paragraphs as people read them.

use std::time::Duration;

use chrono::{DateTime, Local, Utc};
use pbjson_types::Timestamp;

/// 1234567 → `1,234,567`.
pub fn number(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

/// A size with three digits or so, in powers of 1000: `4.33 MB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A number with three digits or so and a prefix of its unit, in powers of 1000: `1.23 M`.
pub fn scaled(n: f64) -> String {
    const PREFIXES: [&str; 7] = ["", " k", " M", " G", " T", " P", " E"];
    let (mut value, mut prefix) = (n.max(0.0), 0);
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = match prefix {
        0 => 0,
        _ if value < 9.995 => 2,
        _ => usize::from(value < 99.95),
    };
    format!("{value:.digits$}{}", PREFIXES[prefix])
}

/// A length of time in its two largest units: `48s`, `3m 20s`, `2h 5m`, `4d 3h`.
pub fn duration(time: Duration) -> String {
    let s = time.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86400, s / 3600 % 24),
    }
}

/// How long ago something was, in its largest unit; empty when it has not been.
pub fn age(time: Option<&Timestamp>) -> String {
    let Some(then) = time.and_then(utc) else { return String::new() };
    let age = (Utc::now() - then).to_std().unwrap_or_default();
    let text = duration(age);
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A moment by the clock of this machine; empty when there is none.
pub fn clock(time: Option<&Timestamp>) -> String {
    local(time, "%H:%M:%S")
}

/// A moment by the calendar and clock of this machine; empty when there is none.
pub fn date(time: Option<&Timestamp>) -> String {
    local(time, "%Y-%m-%d %H:%M:%S")
}

/// The time between two moments, when both have been.
pub fn between(start: Option<&Timestamp>, end: Option<&Timestamp>) -> Option<Duration> {
    (utc(end?)? - utc(start?)?).to_std().ok()
}

fn local(time: Option<&Timestamp>, format: &str) -> String {
    time.and_then(utc).map_or(String::new(), |time| time.with_timezone(&Local).format(format).to_string())
}

fn utc(time: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// The words of a text in lines of at most `width` characters, each after the first indented; its own line breaks stay.
pub fn wrapped(text: &str, width: usize, indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join(&format!("\n{indent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(
            [0, 999, 1000, 4_325_376, 99_960_000].map(bytes),
            ["0 B", "999 B", "1.00 kB", "4.33 MB", "100 MB"]
        );
    }

    #[test]
    fn large_numbers_have_a_prefix() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 1_234_567.0, 8.9e15, 1e21].map(scaled),
            ["0", "999", "1.00 k", "1.23 M", "8.90 P", "1000 E"]
        );
    }

    #[test]
    fn durations_have_two_units() {
        let text = |s| duration(Duration::from_secs(s));
        assert_eq!([48, 200, 7500, 356_400].map(text), ["48s", "3m 20s", "2h 05m", "4d 03h"]);
    }

    #[test]
    fn words_wrap_and_breaks_stay() {
        assert_eq!(wrapped("one two three\nfour", 8, "  "), "one two\n  three\n  four");
        assert_eq!(wrapped("", 8, "  "), "");
    }
}
