//! Video files, through ffmpeg's libraries: the frames that are wanted and no others.
//!
//! video-rs seeks by milliseconds and may land behind the target, and its time stamps are those of decoding; so this goes to
//! the `ffmpeg` crate beneath it (see LOG.md). One scan of the packets numbers the frames in the order in which they are
//! shown; reading seeks to the last key frame before a wanted frame and decodes forward, skipping frames that no other needs.
#![allow(
    unsafe_code,
    reason = "a few of ffmpeg's functions and flags have no safe wrapper; each block says why it is sound"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Once;

use image::RgbImage;
use video_rs::ffmpeg::codec::discard::Discard;
use video_rs::ffmpeg::codec::{decoder, threading};
use video_rs::ffmpeg::error::EAGAIN;
use video_rs::ffmpeg::format::stream::Disposition;
use video_rs::ffmpeg::{self, Dictionary, Packet, codec, ffi, format, frame, media};

use super::container;
use super::convert::{Converter, Rotation};
use super::index::{self, Index, Run};
use crate::{Error, Result};

/// Frames of more pixels are refused: only a damaged header asks for them.
const MAX_PIXELS: &str = "67108864";

/// An opened video file.
pub(super) struct VideoFile {
    path: PathBuf,
    input: format::context::Input,
    stream: usize,
    index: Index,
    /// Seconds from the first frame.
    times: Vec<f64>,
    rotation: Rotation,
}

impl std::fmt::Debug for VideoFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VideoFile({}, {} frames)", self.path.display(), self.times.len())
    }
}

impl VideoFile {
    /// Opens the file and scans its packets.
    ///
    /// # Errors
    /// If it is no video, holds no frame, or ends early.
    pub(super) fn open(path: &Path) -> Result<Self> {
        check_length(path)?;
        let mut input = open_input(path)?;
        let (stream, tick, rotation) = video_stream(&input)
            .ok_or_else(|| Error::file(path, "the file holds no video (sound alone?)"))?;
        ignore_other_streams(&mut input, stream);
        let index = Index::new(scan(path, &mut input, stream)?);
        if index.len() == 0 {
            return Err(Error::file(path, "the file holds no frame"));
        }
        let first = index.pts(0).unwrap_or(0);
        let seconds = |frame: usize| match index.pts(frame) {
            Some(pts) => (pts - first) as f64 * tick,
            // Without times one frame is as long as the other.
            None => frame as f64,
        };
        let times = (0..index.len()).map(seconds).collect();
        Ok(Self { path: path.into(), input, stream, index, times, rotation })
    }

    /// Seconds from the first frame to each.
    pub(super) fn times(&self) -> &[f64] {
        &self.times
    }

    /// The frames with the numbers `wanted`, in this order.
    ///
    /// # Errors
    /// If one is beyond the end or damaged.
    pub(super) fn read(
        &mut self,
        wanted: &[usize],
        short_side: Option<usize>,
    ) -> Result<Vec<RgbImage>> {
        let all: BTreeSet<usize> = wanted.iter().copied().collect();
        if let Some(&last) = all.last().filter(|&&last| last >= self.index.len()) {
            let frames = self.index.len();
            return Err(self.error(format!("has {frames} frames, frame {last} is wanted")));
        }
        let mut converter = Converter::new(short_side, self.rotation);
        let mut found = BTreeMap::new();
        for run in self.index.runs(&all) {
            let from_start = run.start.is_none();
            self.decode(&run, &mut converter, &mut found)?;
            let missing: Vec<usize> =
                run.frames.into_iter().filter(|frame| !found.contains_key(frame)).collect();
            if !missing.is_empty() && !from_start {
                // The container could not seek as it should, or its key frames are none.
                let run = Run { start: None, frames: missing };
                self.decode(&run, &mut converter, &mut found)?;
            }
        }
        let frame = |number: &usize| {
            let frame = found.get(number).cloned();
            frame.ok_or_else(|| self.error(format!("frame {number} cannot be decoded")))
        };
        wanted.iter().map(frame).collect()
    }

    /// Decodes one run; what the file does not give is missing in `found` afterwards.
    fn decode(
        &mut self,
        run: &Run,
        converter: &mut Converter,
        found: &mut BTreeMap<usize, RgbImage>,
    ) -> Result<()> {
        self.seek(run)?;
        let mut decoder = self.decoder()?;
        let mut sought = Sought::new(&self.index, run);
        let mut first = true;
        while sought.packets_left > 0 {
            // One packet per read: reading into a full one forgets its content without freeing it.
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => continue,
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => break,
                Err(e) => return Err(self.error(format!("cannot be read on: {e}"))),
            }
            let landed_behind = run.start.is_some_and(|start| packet.dts() > start.dts);
            if std::mem::take(&mut first) && landed_behind {
                return Ok(());
            }
            let needed = sought.needs(&packet);
            decoder.skip_frame(if needed { Discard::Default } else { Discard::NonReference });
            decoder.send_packet(&packet).map_err(|e| self.damaged(e))?;
            sought.packets_left -= usize::from(needed && !sought.counted);
            self.receive(&mut decoder, &mut sought, converter, found)?;
            if sought.is_empty() {
                return Ok(());
            }
        }
        decoder.send_eof().map_err(|e| self.damaged(e))?;
        self.receive(&mut decoder, &mut sought, converter, found)
    }

    /// Takes what the decoder has finished.
    fn receive(
        &self,
        decoder: &mut decoder::Video,
        sought: &mut Sought,
        converter: &mut Converter,
        found: &mut BTreeMap<usize, RgbImage>,
    ) -> Result<()> {
        let mut frame = frame::Video::empty();
        loop {
            match decoder.receive_frame(&mut frame) {
                Ok(()) => {}
                Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: EAGAIN }) => return Ok(()),
                Err(e) => return Err(self.damaged(e)),
            }
            // What is decoded later builds upon it, so that damage anywhere in the run counts.
            if frame.is_corrupt() || frame.has_decode_errors() {
                return Err(self.error("is damaged: a frame could not be decoded whole"));
            }
            if let Some(number) = sought.take(&frame) {
                let image = converter.image(&frame).map_err(|reason| self.error(reason))?;
                found.insert(number, image);
            }
        }
    }

    fn decoder(&self) -> Result<decoder::Video> {
        let stream = self.input.stream(self.stream).ok_or_else(|| self.error("lost its stream"))?;
        let mut context =
            codec::Context::from_parameters(stream.parameters()).map_err(|e| self.damaged(e))?;
        // The loader's workers are the threads; a decoder of each worker stays on its own.
        context.set_threading(threading::Config::count(1));
        let codec = decoder::find(context.id()).ok_or_else(|| {
            self.error("is of a codec that ffmpeg's libraries here cannot decode")
        })?;
        let mut decoder = context.decoder();
        decoder.set_packet_time_base(stream.time_base());
        let options = Dictionary::from_iter([("max_pixels", MAX_PIXELS)]);
        let opened = decoder.open_as_with(codec, options).and_then(decoder::Opened::video);
        opened.map_err(|e| self.damaged(e))
    }

    /// Goes to where the run begins, or a little before it.
    fn seek(&mut self, run: &Run) -> Result<()> {
        if let Some(start) = run.start {
            let ticks = start.dts.or(start.pts).unwrap_or(0);
            // SAFETY: the context is open, and the stream is one of its own.
            let code = unsafe {
                ffi::av_seek_frame(
                    self.input.as_mut_ptr(),
                    self.stream as i32,
                    ticks,
                    ffi::AVSEEK_FLAG_BACKWARD,
                )
            };
            if code >= 0 {
                return Ok(());
            }
        }
        self.input = open_input(&self.path)?;
        ignore_other_streams(&mut self.input, self.stream);
        Ok(())
    }

    fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("the video {reason}"))
    }

    fn damaged(&self, reason: ffmpeg::Error) -> Error {
        self.error(format!("is damaged: {reason}"))
    }
}

/// The wanted frames that were not met yet.
struct Sought {
    /// Frame numbers by their times, or by their place in the stream where there are no times.
    frames: BTreeMap<i64, usize>,
    /// Packets of theirs that the decoder has not got yet.
    packets_left: usize,
    /// Frames are told by counting.
    counted: bool,
    /// Frames that came out so far.
    count: i64,
}

impl Sought {
    fn new(index: &Index, run: &Run) -> Self {
        let counted = run.frames.iter().any(|&frame| index.pts(frame).is_none());
        let key = |&frame: &usize| (index.pts(frame).unwrap_or(frame as i64), frame);
        let frames: BTreeMap<i64, usize> = run.frames.iter().map(key).collect();
        Self { packets_left: frames.len(), frames, counted, count: 0 }
    }

    fn needs(&self, packet: &Packet) -> bool {
        self.counted || packet.pts().is_some_and(|pts| self.frames.contains_key(&pts))
    }

    fn take(&mut self, frame: &frame::Video) -> Option<usize> {
        self.count += 1;
        let key = if self.counted { Some(self.count - 1) } else { frame.pts() };
        self.frames.remove(&key?)
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// Refuses a file that is empty, or shorter than it says.
fn check_length(path: &Path) -> Result<()> {
    let unread = |e| Error::io("read", path, e);
    let length = std::fs::metadata(path).map_err(unread)?.len();
    if length == 0 {
        return Err(Error::file(path, "the file is empty"));
    }
    match container::promised_bytes(path).map_err(unread)? {
        Some(promised) if length < promised => {
            let reason = format!("the video is truncated: {length} of {promised} bytes are there");
            Err(Error::file(path, reason))
        }
        _ => Ok(()),
    }
}

/// ffmpeg writes to stderr by itself; what matters comes back as errors.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Registers error texts and, in old versions, formats; it cannot fail without devices.
        let _ = ffmpeg::init();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    });
}

fn open_input(path: &Path) -> Result<format::context::Input> {
    prepare();
    let name = path.to_str().filter(|name| !name.contains('\0'));
    let name = name.ok_or_else(|| Error::file(path, "the name of a video must be UTF-8"))?;
    // Playlists and the like may not lead elsewhere, and a name with a colon is no address.
    let options = Dictionary::from_iter([("protocol_whitelist", "file")]);
    format::input_with_dictionary(&format!("file:{name}"), options)
        .map_err(|e| Error::file(path, format!("this is no video that can be read: {e}")))
}

/// Number, seconds per tick and rotation of the best video stream; a picture attached to music is none.
fn video_stream(input: &format::context::Input) -> Option<(usize, f64, Rotation)> {
    let stream = input.streams().best(media::Type::Video)?;
    if stream.disposition().contains(Disposition::ATTACHED_PIC) {
        return None;
    }
    Some((stream.index(), f64::from(stream.time_base()), Rotation::of(&stream)))
}

fn ignore_other_streams(input: &mut format::context::Input, stream: usize) {
    for mut other in input.streams_mut().filter(|other| other.index() != stream) {
        // SAFETY: the stream belongs to the open context; the field is the caller's to set.
        unsafe { (*other.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
    }
}

/// All packets of the stream, in the order of the file.
fn scan(
    path: &Path,
    input: &mut format::context::Input,
    stream: usize,
) -> Result<Vec<index::Packet>> {
    let ended = |found: usize| {
        Error::file(path, format!("the video is truncated: the file ends after {found} frames"))
    };
    let mut packets = Vec::new();
    loop {
        let mut packet = Packet::empty();
        match packet.read(input) {
            Ok(()) if packet.stream() != stream => continue,
            Ok(()) => {}
            Err(ffmpeg::Error::Eof) => break,
            Err(e) => {
                let found = packets.len();
                let reason = format!("the video is damaged after {found} frames: {e}");
                return Err(Error::file(path, reason));
            }
        }
        if packet.is_corrupt() {
            return Err(ended(packets.len()));
        }
        // SAFETY: the packet was just filled; the wrapper drops this flag.
        let hidden = unsafe { (*packet_ptr(&packet)).flags } & ffi::AV_PKT_FLAG_DISCARD != 0;
        packets.push(index::Packet {
            pts: packet.pts(),
            dts: packet.dts(),
            key: packet.is_key(),
            shown: !hidden,
        });
    }
    // MP4 says beforehand how many frames there are.
    let promised = input.stream(stream).map_or(0, |stream| stream.frames().max(0) as usize);
    if input.format().name().contains("mp4") && packets.len() < promised {
        return Err(ended(packets.len()));
    }
    Ok(packets)
}

fn packet_ptr(packet: &Packet) -> *const ffi::AVPacket {
    codec::packet::traits::Ref::as_ptr(packet)
}
