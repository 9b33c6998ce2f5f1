//! TensorBoard's event files: TFRecord frames around protocol buffers, of which scalars need so little that both are
//! written by hand.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// An event file that scalars are appended to.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// A new event file in `folder`. TensorBoard drops what earlier files hold from `step` on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        let seconds = wall_time();
        let name =
            format!("events.out.tfevents.{:010}.{}.rescatter", seconds as u64, std::process::id());
        let path = folder.join(name);
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut writer = Self { path, file };
        // Event.file_version = 3: brain.Event:2.
        writer.record(&event(seconds, 0, |out| bytes_field(out, 3, b"brain.Event:2")))?;
        // Event.session_log = 7, SessionLog.status = 1: START.
        writer.record(&event(seconds, step, |out| bytes_field(out, 7, &[0x08, 1])))?;
        Ok(writer)
    }

    /// Appends named scalars of one step.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            // Summary.Value: tag = 1, simple_value = 2.
            let mut entry = Vec::new();
            bytes_field(&mut entry, 1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((value as f32).to_le_bytes());
            // Summary.value = 1.
            bytes_field(&mut summary, 1, &entry);
        }
        // Event.summary = 5.
        self.record(&event(wall_time(), step, |out| bytes_field(out, 5, &summary)))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).map_err(|e| Error::io("write", &self.path, e))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Event: wall_time = 1 (double), step = 2, and one of what `content` writes.
fn event(wall_time: f64, step: u64, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    content(&mut out);
    out
}

fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// TFRecord: length, its checksum, data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc32c(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc32c(data).to_le_bytes());
    out
}

/// The checksum as TFRecord stores it, rotated and shifted so that a checksum over checksums stays sound.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a record is a few hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_have_the_bytes_that_tensorboard_expects() {
        // {wall_time: 1.0, step: 300, summary {value {tag: "a" simple_value: 0.5}}}, encoded by protoc.
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &[0x0a, 1, b'a', 0x15, 0, 0, 0, 0x3f]);
        let data = event(1.0, 300, |out| bytes_field(out, 5, &summary));
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0xac, 0x02, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'a',
            0x15, 0, 0, 0, 0x3f,
        ];
        assert_eq!(data, expected);
    }

    #[test]
    fn a_file_is_a_chain_of_whole_frames() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 7)?;
        writer.scalars(8, [("loss/total", 0.25), ("lr", 1e-3)])?;
        let bytes = std::fs::read(&writer.path).unwrap();
        let (mut rest, mut records) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let length =
                usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(word(8), masked_crc32c(&rest[..8]));
            assert_eq!(word(12 + length), masked_crc32c(&rest[12..12 + length]));
            records.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        assert!(records[1].ends_with(&[0x10, 7, 0x3a, 2, 0x08, 1]));
        let tag = b"loss/total\x15\x00\x00\x80\x3e";
        assert!(records[2].windows(tag.len()).any(|window| window == tag));
        Ok(())
    }
}
