//! The simulated days as a picture: busy workers, and workers that waiting jobs ask for, hour by hour.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (820, 520);
const COLOURS: [RGBColor; 3] = [RGBColor(150, 150, 150), RGBColor(210, 120, 20), BLUE];

/// A line a policy: points by day.
type Lines = Vec<Vec<(f64, f64)>>;

/// Draws both into a file.
///
/// # Errors
/// When there is nothing to draw, or the file cannot be written.
pub fn draw(figures: &Value, policies: &[(&str, &str); 3], path: &Path) -> anyhow::Result<()> {
    let workers = figures["workers"].as_f64().context("no number of workers")?;
    let lines = |which: usize, unit: f64| -> anyhow::Result<Lines> {
        policies.iter().map(|(name, _)| line(&figures["policies"][name]["hours"], which, unit)).collect()
    };
    let (busy, waiting) = (lines(0, workers / 100.0)?, lines(1, workers)?);
    let draw = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (upper, lower) = area.split_vertically(SIZE.1 / 2);
        panel(&upper, ("busy workers, %", Some(100.0)), &busy, policies)?;
        panel(&lower, ("workers asked for by waiting jobs, fleets", None), &waiting, policies)?;
        Ok(area.present()?)
    };
    draw().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn line(hours: &Value, which: usize, unit: f64) -> anyhow::Result<Vec<(f64, f64)>> {
    let hours = hours.as_array().filter(|hours| !hours.is_empty()).context("no hours to draw")?;
    let point = |(hour, point): (u32, &Value)| {
        Ok(((f64::from(hour) + 0.5) / 24.0, point[which].as_f64().context("a point is no number")? / unit))
    };
    (0..).zip(hours).map(point).collect()
}

fn panel<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    (title, top): (&str, Option<f64>),
    lines: &Lines,
    policies: &[(&str, &str); 3],
) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'a>> {
    let points = || lines.iter().flatten();
    let days = points().map(|(day, _)| *day).fold(1.0 / 24.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..days, 0.0..top.unwrap_or(most * 1.05))?;
    chart.configure_mesh().x_desc("day").y_desc(title).light_line_style(TRANSPARENT).draw()?;
    for ((line, colour), (_, name)) in lines.iter().zip(COLOURS).zip(policies) {
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    let corner = if top.is_some() { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperLeft };
    chart.configure_series_labels().position(corner).background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}
