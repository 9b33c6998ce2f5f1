//! Loops over the rows of a matrix on all threads, and buffers that are reused.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use rayon::prelude::*;

/// Values that one task handles: large enough to outweigh its start, small enough to stay in the second-level cache.
const BLOCK: usize = 1 << 14;

/// Calls `f(first row, rows)` for blocks of whole rows of `data`, on all threads.
pub(crate) fn for_row_blocks(data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_block(width);
    if data.len() <= rows * width {
        f(0, data);
    } else {
        data.par_chunks_mut(rows * width).enumerate().for_each(|(i, block)| f(i * rows, block));
    }
}

/// `len` values in pieces of `width` (the last may be shorter), all threads at once: `f(i, piece i)` is given zeros and leaves
/// the values. The zeros are still in the cache when the values come.
pub(crate) fn filled(len: usize, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    let pieces = values.spare_capacity_mut()[..len].par_chunks_mut(width.max(1));
    pieces.enumerate().for_each(|(i, piece)| {
        piece.fill(MaybeUninit::new(0.0));
        // SAFETY: every element has just been written.
        #[allow(unsafe_code)]
        f(i, unsafe { piece.assume_init_mut() });
    });
    // SAFETY: the pieces cover the first `len` elements, for which there is room.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(len);
    }
    values
}

/// `len` zeros, written by all threads.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    filled(len, 1 << 18, |_, _| {})
}

/// Σ over `rows` rows of what `f(row, sums)` adds to `width` sums; on all threads, and the same result for any number of
/// them.
pub(crate) fn sum_rows(
    rows: usize,
    width: usize,
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    // Fixed blocks summed in order: the rounding must not depend on who did what.
    const ROWS: usize = 128;
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|i| {
            let mut sums = vec![0.0; width];
            f(i * ROWS..rows.min((i + 1) * ROWS), &mut sums);
            sums
        })
        .collect();
    let mut total = vec![0.0; width];
    for sums in partial {
        total.iter_mut().zip(&sums).for_each(|(t, s)| *t += s);
    }
    total
}

fn rows_per_block(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of this thread that returns to it when dropped. Its values are whatever the last user left.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

/// A buffer of `len` values. Fresh memory costs a page fault every 4 KiB, so buffers are kept, not freed.
pub(crate) fn scratch(len: usize) -> Scratch {
    // The smallest that is large enough, else any: it makes way for a larger one.
    let choose = |free: &[Vec<f32>]| {
        let large_enough = (0..free.len()).filter(|&i| free[i].len() >= len);
        large_enough.min_by_key(|&i| free[i].len()).or(free.len().checked_sub(1))
    };
    let kept = FREE.with_borrow_mut(|free| choose(free).map(|i| free.swap_remove(i)));
    let buffer = match kept {
        Some(buffer) if buffer.len() >= len => buffer,
        _ => vec![0.0; len],
    };
    Scratch { buffer, len }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // Fails only while the thread ends, when nothing need be kept.
        let _ = FREE.try_with(|free| free.borrow_mut().push(buffer));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back() {
        scratch(1000)[999] = 5.0;
        let again = scratch(10);
        assert_eq!((again.len(), again.buffer.len()), (10, 1000));
        assert_eq!(scratch(20).buffer.len(), 20);
    }

    #[test]
    fn blocks_cover_every_row_once() {
        let mut data = vec![0.0; 1000 * 37];
        for_row_blocks(&mut data, 37, |first, rows| {
            for (i, row) in rows.chunks_mut(37).enumerate() {
                row.iter_mut().for_each(|v| *v += (first + i) as f32);
            }
        });
        assert!(data.chunks(37).enumerate().all(|(i, row)| row.iter().all(|&v| v == i as f32)));
        let again = filled(1000 * 37 - 5, 37, |first, row| {
            assert!(row.iter().all(|v| *v == 0.0));
            row.fill(first as f32);
        });
        assert!(again == data[..1000 * 37 - 5] && zeros(3) == [0.0; 3] && zeros(0).is_empty());
        // 0 + 1 + … + 299.
        assert_eq!(
            sum_rows(300, 2, |rows, sums| rows.for_each(|r| sums[1] += r as f32)),
            [0.0, 44_850.0]
        );
    }
}
