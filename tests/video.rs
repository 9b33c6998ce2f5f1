//! Video: decoding, lists of clips, heads over time, and the commands on clips.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

#[path = "video/clips.rs"]
mod clips;
#[path = "video/commands.rs"]
mod commands;
#[cfg(feature = "video")]
#[path = "video/damage.rs"]
mod damage;
#[cfg(feature = "video")]
#[path = "video/decoding.rs"]
mod decoding;
#[path = "video/heads.rs"]
mod heads;
#[path = "video/lists.rs"]
mod lists;
#[path = "video/real.rs"]
mod real;

#[cfg(not(feature = "video"))]
#[test]
fn video_files() {
    println!("skipped: decoding of video files because ffmpeg's libraries are not installed");
}
