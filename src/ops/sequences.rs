//! Which tokens attend to one another: whole images, or windows of their token grids.

use candle_core::{DType, Result, Tensor, bail};

use super::branch::positions;

/// Tokens that attend to one another.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Rows of the token matrix that ask; row by row where they have places in a grid.
    pub(crate) queries: Vec<usize>,
    /// Rows that are asked; `None` is a place of padding. In a grid of places they are all there, row by row.
    pub(crate) keys: Vec<Option<usize>>,
    /// How many queries lie beside one another in one row of the grid; of no meaning once queries were taken out.
    pub(crate) columns: usize,
}

/// All sequences of a batch. A token is a query of exactly one sequence and a key of at most that one. What has no key
/// gets zeros.
#[derive(Debug)]
pub(crate) struct Sequences {
    all: Vec<Sequence>,
    tokens: usize,
    every_token_is_key: bool,
    /// What is added to the scores of each token as a key; empty where it is nothing.
    key_bias: Vec<f32>,
}

impl Sequences {
    /// `batch` images of `tokens` tokens without places.
    pub(crate) fn images(batch: usize, tokens: usize) -> Self {
        let image = |image: usize| {
            let rows = image * tokens..(image + 1) * tokens;
            Sequence {
                queries: rows.clone().collect(),
                keys: rows.map(Some).collect(),
                columns: tokens,
            }
        };
        Self {
            all: (0..batch).map(image).collect(),
            tokens: batch * tokens,
            every_token_is_key: true,
            key_bias: Vec::new(),
        }
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
        let tokens = batch * height * width;
        Self { all, tokens, every_token_is_key: true, key_bias: Vec::new() }
    }

    /// Where a token counts as `keep` `[batch, N]` keys, 0 or at least 1; padding as one.
    pub(crate) fn keeping(mut self, keep: &Tensor) -> Result<Self> {
        if keep.elem_count() != self.tokens {
            bail!("attention: a key mask {:?} for {} tokens", keep.dims(), self.tokens);
        }
        let keep = keep.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        for sequence in &mut self.all {
            sequence.keys.retain(|key| key.is_none_or(|row| keep[row] != 0.0));
        }
        self.every_token_is_key = false;
        if keep.iter().any(|&count| count > 1.0) {
            self.key_bias = keep.iter().map(|count| count.max(1.0).ln()).collect();
        }
        Ok(self)
    }

    /// The tokens `rows` (none twice) among themselves and padding; there they are numbers 0, 1, … in the order of `rows`.
    pub(crate) fn among(self, rows: &[u32]) -> Self {
        let number = positions(rows.iter().map(|&row| row as usize), self.tokens);
        let sequence = |sequence: Sequence| Sequence {
            queries: sequence.queries.into_iter().filter_map(|row| number[row]).collect(),
            keys: sequence
                .keys
                .into_iter()
                .filter_map(|key| match key {
                    None => Some(None),
                    Some(row) => number[row].map(Some),
                })
                .collect(),
            columns: 0,
        };
        let all: Vec<Sequence> = self.all.into_iter().map(sequence).collect();
        Self {
            all: all.into_iter().filter(|sequence| !sequence.queries.is_empty()).collect(),
            tokens: rows.len(),
            every_token_is_key: true,
            key_bias: Vec::new(),
        }
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.all.iter()
    }

    /// Tokens in all sequences together.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// What is added to the scores of each token as a key; empty where it is nothing.
    pub(crate) fn key_bias(&self) -> &[f32] {
        &self.key_bias
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
    fn a_window_as_large_as_the_grid_is_the_image() {
        let (window, image) = (Sequences::windows(1, (2, 3), (2, 3)), Sequences::images(1, 6));
        let (window, image) = (window.iter().next().unwrap(), image.iter().next().unwrap());
        assert_eq!((&window.queries, &window.keys), (&image.queries, &image.keys));
    }

    #[test]
    fn active_tokens_are_renumbered_and_empty_windows_vanish() {
        // Of the windows {0, 1, 3, 4}, {2, 5}, {6, 7, 9, 10}, {8, 11} the second and third have active tokens.
        let sequences = Sequences::windows(2, (2, 3), (2, 2)).among(&[5, 7, 9]);
        let all: Vec<_> = sequences.iter().collect();
        assert_eq!((all.len(), sequences.tokens()), (2, 3));
        assert_eq!((&all[0].queries, &all[0].keys), (&vec![0], &vec![None, Some(0), None]));
        assert_eq!((&all[1].queries, &all[1].keys), (&vec![1, 2], &vec![Some(1), Some(2)]));
    }
}
