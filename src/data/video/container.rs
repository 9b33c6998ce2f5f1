//! What containers say about their own length, where ffmpeg takes the end of the file for the end of the video.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How far headers are searched.
const HEAD: u64 = 4096;

/// The length in bytes that a Matroska, WebM or AVI file should have at least; `None` for others and for live recordings,
/// which do not know it.
pub(super) fn promised_bytes(path: &Path) -> std::io::Result<Option<u64>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(riff(&head).or_else(|| matroska(&head)))
}

/// `RIFF`, the length of what follows, `AVI `.
fn riff(head: &[u8]) -> Option<u64> {
    if head.get(..4)? != b"RIFF" || head.get(8..12)? != b"AVI " {
        return None;
    }
    let length = head.get(4..8)?.try_into().ok().map(u32::from_le_bytes)?;
    Some(u64::from(length) + 8)
}

/// The EBML header, then the segment that holds everything.
fn matroska(head: &[u8]) -> Option<u64> {
    let (header, at) = element(head, 0, [0x1A, 0x45, 0xDF, 0xA3])?;
    let (segment, at) =
        element(head, at.checked_add(usize::try_from(header?).ok()?)?, [0x18, 0x53, 0x80, 0x67])?;
    segment?.checked_add(at as u64)
}

/// Length (`None` if unknown) and place of the content of the element `id` that begins at `at`.
fn element(bytes: &[u8], at: usize, id: [u8; 4]) -> Option<(Option<u64>, usize)> {
    if bytes.get(at..at.checked_add(4)?)? != id {
        return None;
    }
    let first = *bytes.get(at + 4)?;
    // The number of leading zeros says how many bytes follow; all ones mean "unknown".
    let width = first.leading_zeros() as usize + 1;
    let rest = bytes.get(at + 5..at + 4 + width)?;
    let mask = 0xFFu64 >> width.min(8);
    let value =
        rest.iter().fold(u64::from(first) & mask, |value, byte| value << 8 | u64::from(*byte));
    let unknown = value == (1u64 << (7 * width)) - 1;
    Some(((!unknown).then_some(value), at + 4 + width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_promise_their_length() {
        assert_eq!(riff(b"RIFF\x10\0\0\0AVI LIST"), Some(24));
        assert_eq!(riff(b"RIFF\x10\0\0\0WAVEfmt "), None);
        let header = [0x1A, 0x45, 0xDF, 0xA3, 0x82, 1, 2];
        let file = |size: &[u8]| [&header, &[0x18, 0x53, 0x80, 0x67][..], size].concat();
        // 7 bytes of header, 4 of name and 8 of length before 1000 bytes of content.
        assert_eq!(matroska(&file(&[1, 0, 0, 0, 0, 0, 0x03, 0xE8])), Some(19 + 1000));
        assert_eq!(matroska(&file(&[0x43, 0xE8])), Some(13 + 1000));
        assert_eq!(matroska(&file(&[1, 255, 255, 255, 255, 255, 255, 255])), None);
        assert_eq!(matroska(&file(&[0])), None);
        assert_eq!(matroska(b"\0\0\0\x20ftypisom"), None);
    }
}
