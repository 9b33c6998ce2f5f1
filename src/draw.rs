//! Pictures for people: label maps and objects over images, legends, heat maps and contact sheets.

mod objects;

use image::{Rgb, RgbImage};
use ndarray::Array2;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

pub use objects::{Drawn, objects};

use crate::data::LabelMap;

const WHITE: Rgb<u8> = Rgb([255; 3]);
const BLACK: Rgb<u8> = Rgb([0; 3]);
const LINE: RasterHeight = RasterHeight::Size16;
const GAP: u32 = 6;
/// matplotlib's `viridis` at eight equally spaced places.
const VIRIDIS: [[u8; 3]; 8] = [
    [68, 1, 84],
    [70, 50, 127],
    [54, 92, 141],
    [39, 127, 142],
    [31, 161, 135],
    [74, 194, 109],
    [159, 218, 58],
    [253, 231, 37],
];

/// One colour per class, neighbours far apart: hues by the golden angle, in three brightnesses.
pub fn palette(classes: usize) -> Vec<Rgb<u8>> {
    (0..classes)
        .map(|class| {
            let hue = (class as f32 * 0.618_034).fract() * 6.0;
            let (value, saturation) = [(0.95, 0.75), (0.65, 0.9), (1.0, 0.45)][class % 3];
            Rgb([5.0, 3.0, 1.0].map(|n: f32| {
                let k = (n + hue).rem_euclid(6.0);
                (255.0 * (value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0))) as u8
            }))
        })
        .collect()
}

/// The label map's colours over the image; pixels of no class stay as they are. `opacity` 1 hides the image.
///
/// Both have the same size; where they do not, the common part is drawn.
pub fn overlay(image: &RgbImage, label: &LabelMap, palette: &[Rgb<u8>], opacity: f32) -> RgbImage {
    let mut out = image.clone();
    for ((y, x), class) in label.indexed_iter() {
        let pixel = out.get_pixel_mut_checked(x as u32, y as u32);
        if let (Some(pixel), Some(colour)) = (pixel, palette.get(usize::from(*class))) {
            *pixel = mix(*pixel, *colour, opacity);
        }
    }
    out
}

/// The label map in its colours alone; pixels of no class are black.
pub fn colour_map(label: &LabelMap, palette: &[Rgb<u8>]) -> RgbImage {
    let (height, width) = label.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        palette.get(usize::from(label[(y as usize, x as usize)])).copied().unwrap_or(BLACK)
    })
}

/// A coloured square and the name of every class, in columns of at most `rows` lines.
pub fn legend(names: &[String], palette: &[Rgb<u8>], rows: usize) -> RgbImage {
    let line = LINE.val() as u32 + 4;
    let rows = rows.clamp(1, names.len().max(1));
    let column = names.iter().map(|name| text_width(name)).max().unwrap_or(0) + line + 2 * GAP;
    let columns = names.len().div_ceil(rows).max(1) as u32;
    let mut canvas =
        RgbImage::from_pixel(columns * column + GAP, rows as u32 * line + 2 * GAP, WHITE);
    for (i, (name, colour)) in names.iter().zip(palette).enumerate() {
        let (x, y) = (GAP + (i / rows) as u32 * column, GAP + (i % rows) as u32 * line);
        fill(&mut canvas, [x, y, line - 4, line - 4], *colour);
        text(&mut canvas, (x + line, y), name, BLACK);
    }
    canvas
}

/// A grid of values as colours over the image (dark: `range.0`, bright: `range.1`).
///
/// Cell (i, j) covers `cell_px` (height, width) pixels from (i · height, j · width), so a grid that was padded at the right
/// and bottom keeps its place.
pub fn heat_map(
    image: &RgbImage,
    values: &Array2<f32>,
    cell_px: (f32, f32),
    range: (f32, f32),
    opacity: f32,
) -> RgbImage {
    let mut out = image.clone();
    let (rows, columns) = values.dim();
    if rows == 0 || columns == 0 {
        return out;
    }
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (i, j) = ((y as f32 / cell_px.0) as usize, (x as f32 / cell_px.1) as usize);
        let value = values[(i.min(rows - 1), j.min(columns - 1))];
        *pixel = mix(*pixel, heat((value - range.0) / (range.1 - range.0)), opacity);
    }
    out
}

/// The colour of a value in 0 to 1.
pub fn heat(value: f32) -> Rgb<u8> {
    let place = value.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f32;
    let low = (place as usize).min(VIRIDIS.len() - 2);
    mix(Rgb(VIRIDIS[low]), Rgb(VIRIDIS[low + 1]), place - low as f32)
}

/// The colours of [`heat`] with the numbers at both ends and what they count.
pub fn heat_legend(range: (f32, f32), title: &str) -> RgbImage {
    let (low, high) = (format!("{}", range.0), format!("{}", range.1));
    let bar = 160;
    let width = text_width(&low) + bar + text_width(&high) + text_width(title) + 5 * GAP;
    let mut canvas = RgbImage::from_pixel(width, LINE.val() as u32 + 2 * GAP, WHITE);
    let mut x = GAP;
    text(&mut canvas, (x, GAP), &low, BLACK);
    x += text_width(&low) + GAP;
    for step in 0..bar {
        fill(
            &mut canvas,
            [x + step, GAP, 1, LINE.val() as u32],
            heat(step as f32 / (bar - 1) as f32),
        );
    }
    x += bar + GAP;
    text(&mut canvas, (x, GAP), &high, BLACK);
    text(&mut canvas, (x + text_width(&high) + GAP, GAP), title, BLACK);
    canvas
}

/// Pictures in rows of `columns`, each with its caption above (one is left out where it is empty).
pub fn contact_sheet(tiles: &[(RgbImage, String)], columns: usize) -> RgbImage {
    let columns = columns.clamp(1, tiles.len().max(1));
    let head =
        if tiles.iter().all(|(_, caption)| caption.is_empty()) { 0 } else { LINE.val() as u32 + 2 };
    let width = tiles.iter().map(|(tile, _)| tile.width()).max().unwrap_or(1) + GAP;
    let height = tiles.iter().map(|(tile, _)| tile.height()).max().unwrap_or(1) + head + GAP;
    let rows = tiles.len().div_ceil(columns).max(1) as u32;
    let mut canvas = RgbImage::from_pixel(columns as u32 * width + GAP, rows * height + GAP, WHITE);
    for (i, (tile, caption)) in tiles.iter().enumerate() {
        let (x, y) = (GAP + (i % columns) as u32 * width, GAP + (i / columns) as u32 * height);
        text(&mut canvas, (x, y), &shorten(caption, width - GAP), BLACK);
        image::imageops::replace(&mut canvas, tile, i64::from(x), i64::from(y + head));
    }
    canvas
}

/// Pictures beside each other on white.
pub fn strip(parts: &[RgbImage]) -> RgbImage {
    let height = parts.iter().map(RgbImage::height).max().unwrap_or(1);
    let width = parts.iter().map(|part| part.width() + 1).sum::<u32>().max(2) - 1;
    let mut canvas = RgbImage::from_pixel(width, height, WHITE);
    let mut x = 0;
    for part in parts {
        image::imageops::replace(&mut canvas, part, x, 0);
        x += i64::from(part.width()) + 1;
    }
    canvas
}

/// Pictures below each other on white.
pub fn stack(parts: &[RgbImage]) -> RgbImage {
    let width = parts.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = parts.iter().map(RgbImage::height).sum::<u32>().max(1);
    let mut canvas = RgbImage::from_pixel(width, height, WHITE);
    let mut y = 0;
    for part in parts {
        image::imageops::replace(&mut canvas, part, 0, y);
        y += i64::from(part.height());
    }
    canvas
}

/// Lines of text below each other, black on white.
pub fn lines(lines: &[String]) -> RgbImage {
    let line = LINE.val() as u32 + 4;
    let width = lines.iter().map(|line| text_width(line)).max().unwrap_or(0) + 2 * GAP;
    let mut canvas = RgbImage::from_pixel(width, lines.len() as u32 * line + 2 * GAP, WHITE);
    for (i, content) in lines.iter().enumerate() {
        text(&mut canvas, (GAP, GAP + i as u32 * line), content, BLACK);
    }
    canvas
}

/// Writes one line with its upper left corner at `(x, y)`; what lies outside the canvas is cut off. Characters that the
/// font lacks become question marks.
pub fn text(canvas: &mut RgbImage, (x, y): (u32, u32), line: &str, colour: Rgb<u8>) {
    let mut left = x;
    for character in line.chars() {
        let raster = |c| get_raster(c, FontWeight::Regular, LINE);
        let Some(raster) = raster(character).or_else(|| raster('?')) else { continue };
        for (dy, row) in raster.rows().enumerate() {
            for (dx, ink) in row.iter().enumerate() {
                if let Some(pixel) = canvas.get_pixel_mut_checked(left + dx as u32, y + dy as u32) {
                    *pixel = mix(*pixel, colour, f32::from(*ink) / 255.0);
                }
            }
        }
        left += raster.width() as u32;
    }
}

/// Width of a line in pixels.
pub fn text_width(line: &str) -> u32 {
    (line.chars().count() * get_raster_width(FontWeight::Regular, LINE)) as u32
}

/// The end of a long line, which tells file names apart better than the start.
fn shorten(line: &str, width: u32) -> String {
    let fits = (width as usize / get_raster_width(FontWeight::Regular, LINE)).max(1);
    let length = line.chars().count();
    if length <= fits { line.to_owned() } else { line.chars().skip(length - fits).collect() }
}

fn fill(canvas: &mut RgbImage, [x, y, width, height]: [u32; 4], colour: Rgb<u8>) {
    for (i, j) in (y..y + height).flat_map(|i| (x..x + width).map(move |j| (i, j))) {
        if let Some(pixel) = canvas.get_pixel_mut_checked(j, i) {
            *pixel = colour;
        }
    }
}

fn mix(a: Rgb<u8>, b: Rgb<u8>, share: f32) -> Rgb<u8> {
    Rgb(std::array::from_fn(|c| {
        (f32::from(a.0[c]) + (f32::from(b.0[c]) - f32::from(a.0[c])) * share)
            .round()
            .clamp(0.0, 255.0) as u8
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_get_different_colours() {
        let mut colours: Vec<_> = palette(171).into_iter().map(|c| c.0).collect();
        colours.sort();
        colours.dedup();
        assert!(colours.len() >= 170, "{} different colours", colours.len());
    }

    #[test]
    fn ignored_pixels_show_the_image() {
        let image = RgbImage::from_pixel(2, 1, Rgb([10, 20, 30]));
        let label = LabelMap::from_shape_vec((1, 2), vec![0, 255]).unwrap();
        let drawn = overlay(&image, &label, &[Rgb([110, 120, 130])], 0.5);
        assert_eq!(
            (drawn.get_pixel(0, 0).0, drawn.get_pixel(1, 0).0),
            ([60, 70, 80], [10, 20, 30])
        );
    }

    #[test]
    fn a_heat_map_keeps_the_grids_place() {
        let image = RgbImage::from_pixel(6, 4, WHITE);
        let mut values = Array2::zeros((2, 2));
        values[(1, 1)] = 12.0;
        let drawn = heat_map(&image, &values, (3.0, 4.0), (0.0, 12.0), 1.0);
        assert_eq!(drawn.get_pixel(3, 3).0, VIRIDIS[0]);
        assert_eq!(drawn.get_pixel(4, 3).0, VIRIDIS[7]);
    }

    #[test]
    fn text_leaves_ink_and_is_cut_at_the_edge() {
        let mut canvas = RgbImage::from_pixel(20, 10, WHITE);
        text(&mut canvas, (2, 0), "räy → long", BLACK);
        assert!(canvas.pixels().any(|p| p.0[0] < 100));
        let names = ["sky".to_owned(), "road".to_owned(), "tree".to_owned()];
        let drawn = legend(&names, &palette(3), 2);
        assert_eq!(drawn.get_pixel(GAP, GAP), &palette(3)[0]);
    }
}
