//! Which tokens attend to one another: whole images, or windows of their token grids.

use candle_core::{DType, Result, Tensor, bail};

/// Tokens that attend to one another.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Rows of the token matrix that ask; row by row where they have places in a grid.
    pub(crate) queries: Vec<usize>,
    /// Rows that are asked; `None` is a place of padding. In a grid of places they are all there, row by row.
    pub(crate) keys: Vec<Option<usize>>,
    /// How many queries lie beside one another in one row of the grid.
    pub(crate) columns: usize,
}

/// All sequences of a batch. A token is a query of exactly one sequence and a key of at most that one.
#[derive(Debug)]
pub(crate) struct Sequences {
    all: Vec<Sequence>,
    tokens: usize,
    every_token_is_key: bool,
}

impl Sequences {
    /// `batch` images of `tokens` tokens without places; `keep` `[batch, tokens]`, 0 or 1, says which may be keys.
    pub(crate) fn images(batch: usize, tokens: usize, keep: Option<&Tensor>) -> Result<Self> {
        let image = |image: usize, kept: &dyn Fn(usize) -> bool| {
            let first = image * tokens;
            Sequence {
                queries: (first..first + tokens).collect(),
                keys: (0..tokens).filter(|&i| kept(i)).map(|i| Some(first + i)).collect(),
                columns: tokens,
            }
        };
        let all = match keep {
            None => (0..batch).map(|i| image(i, &|_| true)).collect(),
            Some(keep) => {
                if keep.dims() != [batch, tokens] {
                    let dims = keep.dims();
                    bail!("attention: a key mask {dims:?} for {batch} images of {tokens} tokens");
                }
                let keep = keep.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                (0..batch).map(|i| image(i, &|token| keep[i][token] != 0.0)).collect::<Vec<_>>()
            }
        };
        if let Some(image) = all.iter().position(|s: &Sequence| s.keys.is_empty()) {
            bail!("attention: image {image} of the batch keeps no key");
        }
        Ok(Self { all, tokens: batch * tokens, every_token_is_key: keep.is_none() })
    }

    /// `batch` grids of `height × width` tokens, cut into windows of `size` rows and columns from the upper left; windows
    /// that reach over the right or lower edge have padding there.
    pub(crate) fn windows(
        batch: usize,
        (height, width): (usize, usize),
        size: (usize, usize),
    ) -> Self {
        let window = |image: usize, top: usize, left: usize| {
            let row = |y: usize, x: usize| (image * height + y) * width + x;
            let (bottom, right) = (height.min(top + size.0), width.min(left + size.1));
            let places = (0..size.0 * size.1).map(|i| (top + i / size.1, left + i % size.1));
            Sequence {
                queries: (top..bottom)
                    .flat_map(|y| (left..right).map(move |x| row(y, x)))
                    .collect(),
                keys: places.map(|(y, x)| (y < bottom && x < right).then(|| row(y, x))).collect(),
                columns: right - left,
            }
        };
        let corners = (0..height)
            .step_by(size.0.max(1))
            .flat_map(|top| (0..width).step_by(size.1.max(1)).map(move |left| (top, left)));
        let all = (0..batch)
            .flat_map(|image| corners.clone().map(move |(top, left)| window(image, top, left)))
            .collect();
        Self { all, tokens: batch * height * width, every_token_is_key: true }
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.all.iter()
    }

    /// Tokens in all sequences together.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether no token is left out as a key.
    pub(crate) fn every_token_is_key(&self) -> bool {
        self.every_token_is_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_grid_and_pad_its_edges() {
        // Two images of 2 × 3 tokens under windows of 2 × 2: the right ones have one column of padding.
        let sequences = Sequences::windows(2, (2, 3), (2, 2));
        let all: Vec<_> = sequences.iter().collect();
        assert_eq!((all.len(), sequences.tokens()), (4, 12));
        assert_eq!((all[0].queries.as_slice(), all[0].columns), (&[0, 1, 3, 4][..], 2));
        assert_eq!((all[1].queries.as_slice(), all[1].columns), (&[2, 5][..], 1));
        assert_eq!(all[1].keys, [Some(2), None, Some(5), None]);
        assert_eq!(all[3].keys, [Some(8), None, Some(11), None]);
    }

    #[test]
    fn a_window_as_large_as_the_grid_is_the_image() -> Result<()> {
        let (window, image) =
            (Sequences::windows(1, (2, 3), (2, 3)), Sequences::images(1, 6, None)?);
        let (window, image) = (window.iter().next().unwrap(), image.iter().next().unwrap());
        assert_eq!((&window.queries, &window.keys), (&image.queries, &image.keys));
        Ok(())
    }
}
