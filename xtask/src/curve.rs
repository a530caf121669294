//! The loss curve of a job, drawn as an SVG picture.

use std::{ops::Range, path::Path};

use anyhow::{Context as _, anyhow};
use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (820, 400);

/// What is drawn: training loss of each step, and evaluation losses.
#[derive(Debug, Default, PartialEq)]
pub struct Curve {
    train: Vec<(f64, f64)>,
    eval: Vec<(f64, f64)>,
}

impl Curve {
    /// Reads what `lorafleet watch --json` prints: an update a line.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn of_updates(text: &str) -> anyhow::Result<Self> {
        let mut curve = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let update: Value =
                serde_json::from_str(line).context("`lorafleet watch --json` printed no JSON")?;
            let point = &update["point"];
            // Canonical protobuf JSON: 64-bit integers are strings, zeros are left out.
            let step = point["step"].as_str().map_or(Ok(0.0), str::parse)?;
            if let Some(loss) = point["loss"].as_f64() {
                curve.train.push((step, loss));
            }
            if let Some(loss) = point["evalLoss"].as_f64() {
                curve.eval.push((step, loss));
            }
        }
        Ok(curve)
    }

    /// Draws it into a file.
    ///
    /// # Errors
    /// When there is nothing to draw, or the file cannot be written.
    pub fn draw(&self, title: &str, path: &Path) -> anyhow::Result<()> {
        let (steps, losses) = self.ranges().context("the job reported no loss")?;
        let draw = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let area = SVGBackend::new(path, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(36)
                .y_label_area_size(48)
                .build_cartesian_2d(steps, losses)?;
            chart
                .configure_mesh()
                .x_desc("step")
                .y_desc("loss (nats a token)")
                .x_label_formatter(&|step| format!("{step:.0}"))
                .light_line_style(TRANSPARENT)
                .draw()?;
            chart
                .draw_series(LineSeries::new(self.train.iter().copied(), BLUE.stroke_width(1)))?
                .label("training, a step")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
            chart
                .draw_series(LineSeries::new(self.eval.iter().copied(), RED.stroke_width(2)).point_size(3))?
                .label("evaluation")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED));
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE)
                .border_style(BLACK)
                .draw()?;
            Ok(area.present()?)
        };
        draw().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }

    fn ranges(&self) -> Option<(Range<f64>, Range<f64>)> {
        let mut all = self.train.iter().chain(&self.eval);
        let &(step, loss) = all.next()?;
        let (mut last, mut low, mut high) = (step, loss, loss);
        for &(step, loss) in all {
            (last, low, high) = (last.max(step), low.min(loss), high.max(loss));
        }
        Some((0.0..last.max(1.0), low - 0.1..high + 0.1))
    }
}

#[cfg(test)]
mod tests {
    use super::Curve;

    #[test]
    fn points_of_a_watch_become_two_lines() {
        let text = concat!(
            "{\"job\":{\"name\":\"jobs/x\"}}\n",
            "{\"point\":{\"evalLoss\":4.05}}\n",
            "{\"point\":{\"step\":\"1\",\"loss\":4.0}}\n",
            "{\"point\":{\"step\":\"2\",\"loss\":3.5,\"evalLoss\":3.75}}\n",
        );
        let curve = Curve::of_updates(text).unwrap();
        assert_eq!(curve.train, [(1.0, 4.0), (2.0, 3.5)]);
        assert_eq!(curve.eval, [(0.0, 4.05), (2.0, 3.75)]);
        let file = tempfile::NamedTempFile::new().unwrap();
        curve.draw("loss", file.path()).unwrap();
        assert!(std::fs::read_to_string(file.path()).unwrap().contains("</svg>"));
        assert!(Curve::default().draw("nothing", file.path()).is_err());
    }
}
