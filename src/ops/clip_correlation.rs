//! How much each patch of a clip looks like those around its place one frame later.

use candle_core::{Result, Tensor};

use crate::backbone::TokenGrid;

/// c(t, p, d) = ⟨x(t, p), x(t + 1, p + d)⟩ for the (2r + 1)² displacements d of at most r rows and columns, row by row; zero
/// outside the grid and after the last frame (the correlation layer of FlowNet, Fischer et al. 2015, §3, with patches of one
/// place); `x`: `[B·T, P, C]` on `places` → `[B·T, P, (2r + 1)²]`.
///
/// # Errors
/// If the tokens do not lie on `places`.
pub fn clip_correlation(x: &Tensor, places: TokenGrid, radius: usize) -> Result<Tensor> {
    let (images, patches, width) = x.dims3()?;
    let clips = places.clips("clip_correlation", images, patches)?;
    let (frames, pairs) = (places.frames, places.frames - 1);
    let displacements = (2 * radius + 1).pow(2);
    if pairs == 0 {
        return Tensor::zeros((images, patches, displacements), x.dtype(), x.device());
    }
    let clip = x.reshape((clips, frames, patches, width))?;
    let all = |first: usize| clip.narrow(1, first, pairs)?.contiguous();
    // Every patch with every other one: as grids are small, cheaper than a pass over the tokens for each displacement.
    let products = all(0)?.matmul(&all(1)?.transpose(2, 3)?)?;
    let products = products.pad_with_zeros(3, 0, 1)?; // what lies outside the grid is found in the last column
    let around = around(places.grid, radius);
    let around = Tensor::from_vec(around, (patches, displacements), x.device())?;
    let around = around.broadcast_as((clips, pairs, patches, displacements))?.contiguous()?;
    let found = products.contiguous()?.gather(&around, 3)?;
    found.pad_with_zeros(1, 0, 1)?.reshape((images, patches, displacements))
}

/// For every patch of the grid the patches around it, or the number of patches where there is none.
fn around(grid: (usize, usize), radius: usize) -> Vec<u32> {
    let (image, patches) = (TokenGrid { grid, frames: 1 }, grid.0 * grid.1);
    let far = radius as isize;
    let by = || (-far..=far).flat_map(|down| (-far..=far).map(move |right| [0, down, right]));
    let around = |patch| by().map(move |by| image.moved(patch, by).unwrap_or(patches) as u32);
    (0..patches).flat_map(around).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};

    #[test]
    fn gradients_are_right() -> Result<()> {
        let places = TokenGrid { grid: (2, 3), frames: 3 };
        check(|t| clip_correlation(&t[0], places, 1), &[normal(&[6, 6, 2], 1)?])
    }

    #[test]
    fn a_patch_that_moved_is_found_at_its_displacement() -> Result<()> {
        // Two clips of two frames on a 4 × 5 grid; the second frame is the first, one row down and two columns to the left.
        let places = TokenGrid { grid: (4, 5), frames: 2 };
        let first = normal(&[2, 4, 5, 64], 2)?;
        let moved = first.narrow(2, 2, 3)?.narrow(1, 0, 3)?;
        let moved = moved.pad_with_zeros(1, 1, 0)?.pad_with_zeros(2, 0, 2)?;
        let clips = Tensor::stack(&[&first, &moved], 1)?.reshape((4, 20, 64))?;
        let found = clip_correlation(&clips, places, 2)?.reshape((2, 2, 4, 5, 25))?;
        let best = found.argmax(4)?.narrow(1, 0, 1)?.narrow(2, 0, 3)?.narrow(3, 2, 3)?;
        // Displacements are numbered row by row from (−2, −2): (1, −2) is 3 · 5 + 0.
        assert_eq!(best.flatten_all()?.to_vec1::<u32>()?, [15; 18]);
        let last = found.narrow(1, 1, 1)?.abs()?.max_all()?.to_dtype(candle_core::DType::F64)?;
        assert_eq!(last.to_scalar::<f64>()?, 0.0);
        Ok(())
    }

    #[test]
    fn one_frame_has_no_next_one() -> Result<()> {
        let places = TokenGrid { grid: (2, 2), frames: 1 };
        let found = clip_correlation(&normal(&[3, 4, 8], 3)?, places, 1)?;
        assert_eq!(found.dims(), [3, 4, 9]);
        Ok(())
    }
}
