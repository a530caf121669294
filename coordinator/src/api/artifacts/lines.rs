//! The lines of a data set, checked while its bytes pass.

use lorafleet_spec::data::{MAX_LINE, check_line};

/// Checks one line after the other; holds at most the one that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct LineChecker {
    /// The beginning of a line whose end has not come.
    open: Vec<u8>,
    /// Lines that are complete.
    lines: u64,
    examples: u64,
}

impl LineChecker {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// What is wrong with the first bad line, and its number.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.open.len() + piece.len() > MAX_LINE {
                return Err(format!("line {} has more than {MAX_LINE} bytes", self.lines + 1));
            }
            if !piece.ends_with(b"\n") {
                self.open.extend_from_slice(piece);
            } else if self.open.is_empty() {
                self.line(piece)?;
            } else {
                self.open.extend_from_slice(piece);
                let line = std::mem::take(&mut self.open);
                self.line(&line)?;
            }
        }
        Ok(())
    }

    /// Takes the end, and returns the number of examples.
    ///
    /// # Errors
    /// What is wrong with the last line, or that there was no example.
    pub(super) fn finish(mut self) -> Result<u64, String> {
        if !self.open.is_empty() {
            let line = std::mem::take(&mut self.open);
            self.line(&line)?;
        }
        match self.examples {
            0 => Err("the data set is empty: no line holds an example".to_owned()),
            examples => Ok(examples),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        self.lines += 1;
        let number = self.lines;
        let bad = |message: String| format!("line {number} {message}");
        let text = std::str::from_utf8(line).map_err(|error| bad(format!("is not UTF-8: {error}")))?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text }.trim();
        if !text.is_empty() {
            check_line(text).map_err(bad)?;
            self.examples += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = r#"{"messages":[{"role":"user","content":"hé"},{"role":"assistant","content":"x"}]}"#;

    fn check(text: &[u8], cut: usize) -> Result<u64, String> {
        let mut checker = LineChecker::default();
        for piece in text.chunks(cut.max(1)) {
            checker.push(piece)?;
        }
        checker.finish()
    }

    #[test]
    fn counts_examples_and_skips_blank_lines() {
        assert_eq!(check(format!("\u{feff}{LINE}\r\n\n  \n{LINE}").as_bytes(), 7), Ok(2));
    }

    #[test]
    fn the_first_bad_line_is_named() {
        let error = check(format!("{LINE}\n\n{{}}\nnonsense\n").as_bytes(), 1000).unwrap_err();
        assert!(error.starts_with("line 3 "), "{error}");
        let error = check(format!("{LINE}\nnonsense").as_bytes(), 1000).unwrap_err();
        assert!(error.starts_with("line 2 is not JSON"), "{error}");
        let error = check(b"\n \n", 1).unwrap_err();
        assert!(error.contains("empty"), "{error}");
        let error = check(b"\xff\n", 1).unwrap_err();
        assert!(error.starts_with("line 1 is not UTF-8"), "{error}");
        let error = check(&vec![b' '; MAX_LINE + 1], 1 << 20).unwrap_err();
        assert!(error.starts_with("line 1 has more than"), "{error}");
    }

    proptest! {
        /// Wherever the bytes are cut, the answer is the one that the trainer's reader gives.
        #[test]
        fn cuts_do_not_matter(
            lines in prop::collection::vec(
                prop_oneof![Just(LINE), Just(""), Just(" \r"), Just("{}"), Just("\u{feff}"), Just("é")], 0..6),
            end in any::<bool>(),
            cut in 1usize..40,
        ) {
            let text = lines.join("\n") + if end { "\n" } else { "" };
            let whole = lorafleet_spec::data::check_reader(text.as_bytes()).map_err(|error| error.to_string());
            prop_assert_eq!(check(text.as_bytes(), cut), whole);
        }
    }
}
