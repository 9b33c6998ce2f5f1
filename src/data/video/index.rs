//! The frames of a video stream from one scan of its packets, without decoding.

use std::collections::BTreeSet;

/// One compressed frame, in the order in which the file holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    /// When it is shown, in ticks of the stream; unknown in some old containers.
    pub(super) pts: Option<i64>,
    /// When it is decoded.
    pub(super) dts: Option<i64>,
    /// Whether decoding can begin here.
    pub(super) key: bool,
    /// Whether it is shown at all: edit lists cut frames away that others are decoded from.
    pub(super) shown: bool,
}

/// The packets and the order in which they are shown.
#[derive(Debug)]
pub(super) struct Index {
    packets: Vec<Packet>,
    /// Numbers of the shown packets by their time.
    shown: Vec<usize>,
    /// Whether every packet says when it is shown.
    timed: bool,
}

/// What is decoded in one go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The packet to begin at; `None` is the start of the file.
    pub(super) start: Option<Packet>,
    /// Numbers of the wanted frames, rising.
    pub(super) frames: Vec<usize>,
}

impl Index {
    pub(super) fn new(packets: Vec<Packet>) -> Self {
        let timed = packets.iter().all(|packet| packet.pts.is_some());
        let mut shown: Vec<usize> = (0..packets.len()).filter(|&i| packets[i].shown).collect();
        if timed {
            shown.sort_by_key(|&i| packets[i].pts);
            // Two frames at one time cannot be told apart, nor seen.
            shown.dedup_by_key(|&mut i| packets[i].pts);
        }
        Self { packets, shown, timed }
    }

    /// How many frames are shown.
    pub(super) fn len(&self) -> usize {
        self.shown.len()
    }

    /// When frame `frame` is shown, in ticks; `None` in files that do not say so for every frame.
    pub(super) fn pts(&self, frame: usize) -> Option<i64> {
        if self.timed { self.packets[self.shown[frame]].pts } else { None }
    }

    /// Where decoding must begin for the frames `wanted`: each run at the last key packet, in the order of decoding, that is
    /// not shown after its first frame. So frames that precede a key packet in time and follow it in the file, which may need
    /// what lies before it, begin at the one before.
    pub(super) fn runs(&self, wanted: &BTreeSet<usize>) -> Vec<Run> {
        if !self.timed {
            return vec![Run { start: None, frames: wanted.iter().copied().collect() }];
        }
        let mut runs: Vec<(Option<usize>, Run)> = Vec::new();
        for &frame in wanted {
            let key = self.key_before(self.shown[frame]);
            match runs.last_mut() {
                Some((start, run)) if *start == key => run.frames.push(frame),
                _ => {
                    let start = key.map(|key| self.packets[key]);
                    runs.push((key, Run { start, frames: vec![frame] }));
                }
            }
        }
        runs.into_iter().map(|(_, run)| run).collect()
    }

    /// `None` where the first packet will do as well.
    fn key_before(&self, packet: usize) -> Option<usize> {
        let pts = self.packets[packet].pts;
        let begins = |&i: &usize| self.packets[i].key && self.packets[i].pts <= pts;
        (0..=packet).rev().find(begins).filter(|&key| key > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pts: i64, dts: i64) -> Packet {
        Packet { pts: Some(pts), dts: Some(dts), key: true, shown: true }
    }

    /// I P B B | I B B P: the second group's B frames are shown before its I frame (an open group).
    fn open_group() -> Vec<Packet> {
        let pts = [0, 3, 1, 2, 6, 4, 5, 7].into_iter().enumerate();
        pts.map(|(i, pts)| Packet { key: i == 0 || i == 4, ..key(pts, i as i64 - 2) }).collect()
    }

    #[test]
    fn frames_are_numbered_as_they_are_shown() {
        let index = Index::new(open_group());
        let times: Vec<_> = (0..index.len()).map(|frame| index.pts(frame)).collect();
        assert_eq!(times, (0..8).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn runs_begin_where_everything_needed_follows() {
        let index = Index::new(open_group());
        let runs = |wanted: &[usize]| index.runs(&wanted.iter().copied().collect());
        let second = Some(key(6, 2));
        assert_eq!(runs(&[7]), [Run { start: second, frames: vec![7] }]);
        // Frames 4 and 5 follow the second key in the file but are shown before it.
        assert_eq!(runs(&[1, 4, 5]), [Run { start: None, frames: vec![1, 4, 5] }]);
        let both = runs(&[2, 6, 7]);
        assert_eq!((both.len(), &both[1]), (2, &Run { start: second, frames: vec![6, 7] }));
    }

    #[test]
    fn what_an_edit_list_cuts_is_no_frame_but_can_be_a_start() {
        let mut packets = open_group();
        packets.iter_mut().take(5).for_each(|packet| packet.shown = false);
        let index = Index::new(packets);
        assert_eq!((index.len(), index.pts(0), index.pts(2)), (3, Some(4), Some(7)));
        assert_eq!(
            index.runs(&BTreeSet::from([2]))[0].start,
            Some(Packet { shown: false, ..key(6, 2) })
        );
    }

    #[test]
    fn without_times_everything_begins_at_the_start() {
        let mut packets = open_group();
        packets[3].pts = None;
        let index = Index::new(packets);
        assert_eq!((index.len(), index.pts(0)), (8, None));
        assert_eq!(index.runs(&BTreeSet::from([5]))[0].start, None);
    }
}
