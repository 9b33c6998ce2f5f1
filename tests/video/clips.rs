//! Clips with a frame counter burned in.

use std::path::Path;

use image::{Rgb, RgbImage};

/// Width and height; the counter needs 8 blocks of 12 × 16 pixels.
pub(crate) const SIZE: (u32, u32) = (96, 64);

/// Frame `number`: its binary digits as blocks in the upper half, a moving gradient below.
pub(crate) fn frame(number: usize, (width, height): (u32, u32)) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        if y < 32 && x < 96 {
            let lit = number >> (7 - x / 12) & 1 == 1;
            return if lit { Rgb([235, 225, 230]) } else { Rgb([25, 20, 35]) };
        }
        let shade = (2 * x + 3 * number as u32) % 200;
        Rgb([30 + shade as u8, 220 - shade as u8, (60 + y * 2 % 100) as u8])
    })
}

/// The number that a frame shows.
pub(crate) fn number(image: &RgbImage) -> usize {
    let scale = f64::from(image.width()) / f64::from(SIZE.0);
    let lit = |bit: u32| {
        let (x, y) = ((f64::from(12 * bit + 6) * scale) as u32, (16.0 * scale) as u32);
        usize::from(image.get_pixel(x, y).0[1] > 128)
    };
    (0..8).fold(0, |number, bit| 2 * number + lit(bit))
}

/// The frames as PNG files of a folder, with names that sort wrongly as text.
pub(crate) fn write_folder(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        frame(i, SIZE).save(folder.join(format!("frame_{i}.png"))).unwrap();
    }
}

/// Runs ffmpeg with `args`, the frames `0..count` of `size` at its standard input.
#[cfg(feature = "video")]
pub(crate) fn encode(args: &str, count: usize, size: (u32, u32), path: &Path) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let input =
        format!("-v error -y -f rawvideo -pix_fmt rgb24 -s {}x{} -r 25 -i -", size.0, size.1);
    let mut child = Command::new("ffmpeg")
        .args(input.split(' '))
        .args(args.split_whitespace())
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    for i in 0..count {
        pipe.write_all(frame(i, size).as_raw()).unwrap();
    }
    drop(pipe);
    assert!(child.wait().unwrap().success(), "ffmpeg {args}");
}

/// Whether the command `ffmpeg` is there; says so where it is not.
#[cfg(feature = "video")]
pub(crate) fn has_ffmpeg(test: &str) -> bool {
    let there = std::process::Command::new("ffmpeg").arg("-version").output().is_ok();
    if !there {
        println!("skipped: {test} because the command ffmpeg is not installed");
    }
    there
}
