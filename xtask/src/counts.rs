//! How many tests ran, read from what the test runners print.

use std::{fmt, ops::AddAssign};

/// Counted tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were not run.
    pub skipped: u64,
}

impl Counts {
    /// What one line adds: `cargo test`'s result line, or nextest's summary; nothing for any other line.
    pub fn of_line(line: &str) -> Option<Self> {
        let plain = without_colors(line);
        let text = plain.trim_start();
        // Not indented: nextest repeats, indented, what a failed test printed, and counts it in its summary.
        let list = if plain.starts_with("test result: ") {
            plain.split_once(". ")?.1
        } else if text.starts_with("Summary [") {
            text.split_once(':')?.1
        } else {
            return None;
        };
        let mut counts = Self::default();
        for part in list.split([',', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(word)) = (words.next(), words.next()) else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match word {
                "passed" => counts.passed += count,
                // nextest counts a test that ran too long apart from one that failed.
                "failed" | "timed" => counts.failed += count,
                "ignored" | "skipped" => counts.skipped += count,
                _ => {}
            }
        }
        Some(counts)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

/// The line without its escape sequences.
fn without_colors(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\u{1b}' {
            chars.by_ref().find(|end| end.is_ascii_alphabetic());
        } else {
            text.push(char);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nextest_repeats_of_a_failed_test_is_not_counted_again() {
        assert_eq!(Counts::of_line("    test result: FAILED. 0 passed; 1 failed; 0 ignored"), None);
    }

    #[test]
    fn cargo_tests_result_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 12, failed: 3, skipped: 1 }));
    }

    #[test]
    fn nextests_summary_is_read() {
        let line = "     Summary [   4.215s] 131 tests run: 128 passed (2 slow, 1 flaky), 2 failed, 1 timed out, 5 skipped";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 128, failed: 3, skipped: 5 }));
        let colored = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m passed, 0 skipped";
        assert_eq!(Counts::of_line(colored), Some(Counts { passed: 2, failed: 0, skipped: 0 }));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Counts::of_line("test job::tests::one_passed ... ok"), None);
        assert_eq!(Counts::of_line("running 3 tests"), None);
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 0 }.to_string(), "3 passed, 0 failed");
        assert_eq!(Counts { passed: 3, failed: 1, skipped: 2 }.to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
