//! Greedy non-maximum suppression.

use candle_core::{Device, Result, Tensor};

use super::call::{Call, Grid, Number, Output};

/// Boxes that one word tells about, as in `nms.cu`.
const BITS: usize = 64;

/// As [`nms`](crate::ops::nms).
pub(in crate::ops) fn nms(
    lists: &[&[[f32; 4]]],
    threshold: f32,
    device: &Device,
) -> Result<Vec<Vec<bool>>> {
    let boxes = lists.concat();
    let (count, longest) =
        (boxes.len(), lists.iter().map(|list| list.len()).max().unwrap_or_default());
    if count == 0 {
        return Ok(vec![Vec::new(); lists.len()]);
    }
    let words = longest.div_ceil(BITS);
    let mut starts = vec![0u32];
    starts.extend(lists.iter().scan(0, |end, list| {
        *end += list.len() as u32;
        Some(*end)
    }));
    let starts = Tensor::new(starts, device)?;
    let overlaps = Call {
        kernel: "nms_overlaps",
        inputs: &[&Tensor::from_vec(boxes.into_flattened(), (count, 4), device)?, &starts],
        outputs: &[Output::Words((count, words).into())],
        numbers: &[lists.len().into(), count.into(), words.into(), Number::F32(threshold)],
        grid: Grid::Values(count * words),
    };
    let sweep = Call {
        kernel: "nms_sweep",
        inputs: &[&overlaps.one()?.tensor(), &starts],
        outputs: &[Output::Words((lists.len(), words).into())],
        numbers: &[words.into()],
        grid: Grid::Rows(lists.len()),
    };
    let removed = sweep.one()?.tensor().to_vec2::<i64>()?;
    let of_list = |(list, removed): (&&[[f32; 4]], Vec<i64>)| {
        (0..list.len()).map(|i| removed[i / BITS] >> (i % BITS) & 1 == 0).collect()
    };
    Ok(lists.iter().zip(removed).map(of_list).collect())
}
