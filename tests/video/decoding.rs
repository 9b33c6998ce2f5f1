//! The right frame for every number, whatever the codec, the container and the order of decoding.

use std::path::Path;
use std::process::Command;

use image::RgbImage;
use rescatter::data::video::Video;
use tempfile::TempDir;

use crate::clips::{SIZE, encode, frame, has_ffmpeg, number, write_folder};

const FRAMES: usize = 60;

/// Name and how ffmpeg makes it.
const CLIPS: [(&str, &str); 12] = [
    ("h264_b.mp4", "-c:v libx264 -pix_fmt yuv420p -bf 3 -g 12"),
    ("h264_long.mp4", "-c:v libx264 -pix_fmt yuv420p -bf 2 -g 250"),
    (
        "h264_open.mp4",
        "-c:v libx264 -pix_fmt yuv420p -x264-params open-gop=1:keyint=12:bframes=3:scenecut=0",
    ),
    ("h264.mkv", "-c:v libx264 -pix_fmt yuv420p -bf 3 -g 15"),
    ("h264.ts", "-c:v libx264 -pix_fmt yuv420p -bf 3 -g 15"),
    ("h265.mp4", "-c:v libx265 -pix_fmt yuv420p -x265-params log-level=none:keyint=15:bframes=4"),
    ("mpeg4.mp4", "-c:v mpeg4 -q:v 3 -bf 2 -g 12"),
    ("mpeg4.avi", "-c:v mpeg4 -q:v 3 -bf 2 -g 12"),
    ("vp9.webm", "-c:v libvpx-vp9 -pix_fmt yuv420p -b:v 1M -g 20 -deadline realtime -cpu-used 8"),
    ("mjpeg.mov", "-c:v mjpeg -pix_fmt yuvj420p -q:v 2"),
    ("ten_bit.mp4", "-c:v libx264 -pix_fmt yuv422p10le -bf 2 -g 12"),
    (
        "bt709.mp4",
        "-c:v libx264 -pix_fmt yuv420p -bf 2 -g 12 -vf scale=out_color_matrix=bt709 -colorspace bt709",
    ),
];

fn numbers(frames: &[RgbImage]) -> Vec<usize> {
    frames.iter().map(number).collect()
}

/// What the command ffmpeg decodes.
fn by_ffmpeg(path: &Path, size: (u32, u32)) -> Vec<RgbImage> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args("-vsync passthrough -f rawvideo -pix_fmt rgb24 -".split(' '))
        .output()
        .unwrap();
    let bytes = 3 * (size.0 * size.1) as usize;
    let image = |pixels: &[u8]| RgbImage::from_raw(size.0, size.1, pixels.to_vec()).unwrap();
    output.stdout.chunks_exact(bytes).map(image).collect()
}

fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: f64 = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.as_raw().len() as f64
}

#[test]
fn every_number_gives_its_frame_in_any_order() {
    if !has_ffmpeg("every_number_gives_its_frame_in_any_order") {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (name, args) in CLIPS {
        let path = folder.path().join(name);
        encode(args, FRAMES, SIZE, &path);
        let open = || Video::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let mut video = open();
        assert_eq!(video.frames(), FRAMES, "{name}");
        let all: Vec<usize> = (0..FRAMES).collect();
        let sequential = video.read(&all, None).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(numbers(&sequential), all, "{name}");
        // One at a time, forward and back, from a file that is freshly opened and from one that was read before.
        for i in (0..FRAMES).rev().step_by(7).chain([0, 1, 13, FRAMES - 1]) {
            assert_eq!(open().read(&[i], None).unwrap(), [sequential[i].clone()], "{name}, {i}");
            assert_eq!(video.read(&[i], None).unwrap(), [sequential[i].clone()], "{name}, {i}");
        }
        let mixed = [58, 3, 3, 17, 40, 16, 0, 59];
        let wanted: Vec<RgbImage> = mixed.iter().map(|&i| sequential[i].clone()).collect();
        assert_eq!(video.read(&mixed, None).unwrap(), wanted, "{name}");
        let theirs = by_ffmpeg(&path, SIZE);
        assert_eq!(theirs.len(), FRAMES, "{name}");
        let worst =
            sequential.iter().zip(&theirs).map(|(a, b)| difference(a, b)).fold(0.0, f64::max);
        println!("{name}: largest mean difference to ffmpeg {worst:.3}");
        assert!(worst <= 2.0, "{name}: {worst}");
    }
}

#[test]
fn odd_sizes_and_rotations_come_out_as_ffmpeg_shows_them() {
    if !has_ffmpeg("odd_sizes_and_rotations_come_out_as_ffmpeg_shows_them") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let odd = folder.path().join("odd.mp4");
    encode("-c:v libx264 -pix_fmt yuv444p -g 12", 20, (97, 65), &odd);
    let frames = Video::open(&odd).unwrap().read(&[19, 5], None).unwrap();
    assert_eq!((frames[0].dimensions(), numbers(&frames)), ((97, 65), vec![19, 5]));
    for (turn, size) in [(90, (64, 96)), (180, SIZE), (270, (64, 96))] {
        let path = folder.path().join(format!("turned_{turn}.mp4"));
        let upright = folder.path().join("upright.mp4");
        encode("-c:v libx264 -pix_fmt yuv420p -g 12", 20, SIZE, &upright);
        let status = Command::new("ffmpeg")
            .args(["-v", "error", "-y", "-i"])
            .arg(&upright)
            .args(format!("-c copy -metadata:s:v:0 rotate={turn}").split(' '))
            .arg(&path)
            .status();
        assert!(status.unwrap().success());
        let frames = Video::open(&path).unwrap().read(&[7], None).unwrap();
        let theirs = by_ffmpeg(&path, size);
        let off = difference(&frames[0], &theirs[7]);
        assert!(off <= 2.0, "turned by {turn}: {off}");
        let small = Video::open(&path).unwrap().read(&[7], Some(32)).unwrap();
        assert_eq!(small[0].width().min(small[0].height()), 32, "turned by {turn}");
    }
}

#[test]
fn frames_are_reduced_while_they_are_decoded() {
    if !has_ffmpeg("frames_are_reduced_while_they_are_decoded") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    encode("-c:v libx264 -pix_fmt yuv420p -g 12", 30, (192, 128), &path);
    let frames = Video::open(&path).unwrap().read(&[4, 20], Some(64)).unwrap();
    assert_eq!(frames[0].dimensions(), (96, 64));
    // A large frame shows the number in blocks of the same size, so halving halves them.
    let lit = |image: &RgbImage, bit: u32| image.get_pixel(6 * bit + 3, 8).0[1] > 128;
    let shown = |image| (0..8).fold(0, |n, bit| 2 * n + usize::from(lit(image, bit)));
    assert_eq!([shown(&frames[0]), shown(&frames[1])], [4, 20]);
}

#[test]
fn a_varying_frame_rate_is_sampled_by_time() {
    if !has_ffmpeg("a_varying_frame_rate_is_sampled_by_time") {
        return;
    }
    let folder = TempDir::new().unwrap();
    for name in ["varying.mp4", "varying.mkv"] {
        let path = folder.path().join(name);
        // 20 frames at 25 a second, then 20 at 5 a second: 0.8 s and 4 s.
        let times = "setpts='if(lt(N,20),N,20+(N-20)*5)/25/TB'";
        let args = format!("-vf {times} -vsync vfr -c:v libx264 -pix_fmt yuv420p -bf 2 -g 12");
        encode(&args, 40, SIZE, &path);
        let mut video = Video::open(&path).unwrap();
        let times = video.times().unwrap().to_vec();
        assert_eq!(times.len(), 40, "{name}");
        assert!((times[19] - 0.76).abs() < 2e-3 && (times[38] - 4.4).abs() < 2e-3, "{times:?}");
        let all: Vec<usize> = (0..40).collect();
        assert_eq!(numbers(&video.read(&all, None).unwrap()), all, "{name}");
        // Halfway in time (2.3 s) lies frame 20 + (2.3 − 0.8) / 0.2 = 27.5, not frame 20.
        assert_eq!(video.shown_at(20), 27, "{name}");
    }
}

#[test]
fn what_is_no_video_is_named() {
    let folder = TempDir::new().unwrap();
    let says = |name: &str, bytes: &[u8], part: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Video::open(&path).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(part), "{error}");
    };
    says("empty.mp4", b"", "the file is empty");
    says("text.mp4", b"this is no video at all, whatever its name says", "no video");
    let missing = Video::open(&folder.path().join("gone.mp4")).unwrap_err().to_string();
    assert!(missing.contains("gone.mp4") && missing.contains("there is no such"), "{missing}");
    if !has_ffmpeg("what_is_no_video_is_named") {
        return;
    }
    let sound = folder.path().join("sound.mp4");
    let args = "-v error -f lavfi -i sine=frequency=440:duration=1 -c:a aac";
    let made = Command::new("ffmpeg").args(args.split(' ')).arg(&sound).status().unwrap();
    assert!(made.success());
    let error = Video::open(&sound).unwrap_err().to_string();
    assert!(error.contains("sound.mp4: the file holds no video"), "{error}");
    let path = folder.path().join("clip.mp4");
    encode("-c:v libx264 -pix_fmt yuv420p -g 12 -movflags +faststart", 40, SIZE, &path);
    let error = Video::open(&path).unwrap().read(&[40], None).unwrap_err().to_string();
    assert!(error.contains("has 40 frames, frame 40 is wanted"), "{error}");
    // With the sample table in front, a file that ends early can still be opened.
    let whole = std::fs::read(&path).unwrap();
    for share in [30, 60, 95] {
        std::fs::write(&path, &whole[..whole.len() * share / 100]).unwrap();
        let error = Video::open(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{share} %: {error}");
    }
    let webm = folder.path().join("clip.webm");
    encode(
        "-c:v libvpx-vp9 -pix_fmt yuv420p -g 20 -deadline realtime -cpu-used 8",
        40,
        SIZE,
        &webm,
    );
    let whole = std::fs::read(&webm).unwrap();
    std::fs::write(&webm, &whole[..whole.len() * 6 / 10]).unwrap();
    let error = Video::open(&webm).map(drop).unwrap_err().to_string();
    assert!(error.contains("truncated") || error.contains("damaged"), "{error}");
}

#[test]
fn a_folder_of_frames_is_the_same_video() {
    let folder = TempDir::new().unwrap();
    write_folder(folder.path(), 12);
    let mut video = Video::open(folder.path()).unwrap();
    assert_eq!((video.frames(), video.times().is_none()), (12, true));
    assert_eq!(video.read(&[11, 2], None).unwrap(), [frame(11, SIZE), frame(2, SIZE)]);
}
