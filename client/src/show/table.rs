//! A table in plain text, its columns aligned.

use std::fmt;

/// Rows under a header. A column whose title begins with `>` is aligned to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these columns.
    pub fn new(titles: &[&str]) -> Self {
        let header = titles.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
        Self { rows: vec![header], right: titles.iter().map(|title| title.starts_with('>')).collect() }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// Adds a row, one cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).zip(&self.right).map(|((cell, &width), &right)| {
                if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["JOB", ">STEP", "STATE"]);
        table.row(vec!["a".into(), "7".into(), "running".into()]);
        table.row(vec!["bcdé".into(), "1,000".into(), String::new()]);
        assert!(!table.is_empty() && Table::new(&["JOB"]).is_empty());
        assert_eq!(table.to_string(), "JOB    STEP  STATE\na         7  running\nbcdé  1,000");
    }
}
