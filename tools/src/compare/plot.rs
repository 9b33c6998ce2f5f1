//! The score against what it costs: trained numbers, multiply-adds and time, as PNG and SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use plotters::coord::Shift;
use plotters::prelude::*;
use rescatter::draw;

use super::canvas::Canvas;
use super::measure::Figures;
use super::summary::{Row, Summary};

/// Width and height of one of the three panels; the names stand beside them.
const PANEL: (u32, u32) = (360, 330);
const NAMES: u32 = 240;

/// What a panel shows along its horizontal axis.
struct Cost {
    title: &'static str,
    of: fn(&Figures) -> f64,
}

const COSTS: [Cost; 3] = [
    Cost {
        title: "log10 of the trained numbers",
        of: |f| (f.backbone_parameters + f.head_parameters).max(1.0).log10(),
    },
    Cost { title: "GMACs per image", of: |f| f.gmacs_nominal },
    Cost { title: "ms per image", of: |f| 1e3 * f.seconds_per_image },
];

/// Writes `compare.png` and `compare.svg`.
pub(super) fn write(summary: &Summary, folder: &Path) -> Result<()> {
    let size = (3 * PANEL.0 + NAMES, PANEL.1.max(24 * summary.rows.len() as u32 + 40));
    let mut picture = RgbImage::new(size.0, size.1);
    draw_all(summary, Canvas(&mut picture).into_drawing_area())?;
    let path = folder.join("compare.png");
    picture.save(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let mut text = String::new();
    draw_all(summary, SVGBackend::with_string(&mut text, size).into_drawing_area())?;
    rescatter::fs::atomic_write(folder.join("compare.svg"), text)?;
    Ok(())
}

fn draw_all<B: DrawingBackend>(summary: &Summary, area: DrawingArea<B, Shift>) -> Result<()> {
    let failed = |e: DrawingAreaErrorKind<B::ErrorType>| anyhow!("cannot draw the plot: {e}");
    area.fill(&WHITE).map_err(failed)?;
    let (panels, names) = area.split_horizontally(3 * PANEL.0);
    for (cost, area) in COSTS.iter().zip(panels.split_evenly((1, 3))) {
        panel(summary, cost, &area).map_err(failed)?;
    }
    for (i, row) in summary.rows.iter().enumerate() {
        let (colour, y) = (colour(summary, i), 24 * i as i32 + 24);
        names.draw(&Circle::new((12, y), 5, colour.filled())).map_err(failed)?;
        let style = ("sans-serif", 14).into_font().color(&BLACK);
        names.draw(&Text::new(row.method.clone(), (24, y - 8), style)).map_err(failed)?;
    }
    area.present().map_err(failed)
}

fn panel<B: DrawingBackend>(
    summary: &Summary,
    cost: &Cost,
    area: &DrawingArea<B, Shift>,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let score = |row: &Row| 100.0 * row.figures.score;
    let spread = |row: &Row| 100.0 * row.spread.unwrap_or(0.0);
    let x = bounds(summary.rows.iter().map(|row| (cost.of)(&row.figures)));
    let ends = |row: &Row| [score(row) - spread(row), score(row) + spread(row)];
    let y = bounds(summary.rows.iter().flat_map(ends));
    // Not along the axis: the font does not turn.
    let title = format!("{} in %", summary.score);
    let style = ("sans-serif", 14).into_font().color(&BLACK);
    area.draw(&Text::new(title, (8, 4), style))?;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_top(26)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(x[0]..x[1], y[0]..y[1])?;
    chart
        .configure_mesh()
        .x_desc(cost.title)
        .x_labels(4)
        .y_labels(6)
        .label_style(("sans-serif", 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, row) in summary.rows.iter().enumerate() {
        let (colour, at) = (colour(summary, i), (cost.of)(&row.figures));
        let [low, high] = ends(row);
        chart.draw_series([PathElement::new(vec![(at, low), (at, high)], colour)])?;
        chart.draw_series([Circle::new((at, score(row)), 5, colour.filled())])?;
    }
    Ok(())
}

/// The range of the values with a margin; of one value a range about it.
fn bounds(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let margin = (0.1 * (high - low)).max(1e-3 * high.abs()).max(1e-6);
    [low - margin, high + margin]
}

fn colour(summary: &Summary, row: usize) -> RGBColor {
    // Darker than over pictures: the ground is white.
    let [r, g, b] = draw::palette(summary.rows.len())[row].0.map(|value| value / 4 * 3);
    RGBColor(r, g, b)
}
