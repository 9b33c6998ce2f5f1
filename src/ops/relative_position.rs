//! Decomposed relative positions (MViTv2, arXiv 2112.01526, Eq. 4; ViTDet, arXiv 2203.16527): a query adds to the score
//! of each key what it finds in a table for their distance in rows and in another for that in columns.

use candle_core::{Device, Result, Tensor, bail};

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::values;
use super::resize::{Interpolation, resize};
use super::rows::{Scratch, scratch};
use super::vector::vectorised;

/// The two tables, shared by all heads: row d + K − 1 belongs to the distance d (query − key) of a side of K places.
#[derive(Debug, Clone)]
pub struct RelativePosition {
    /// Distances in rows, `[2·Kh − 1, D]`.
    pub height: Tensor,
    /// Distances in columns, `[2·Kw − 1, D]`.
    pub width: Tensor,
}

impl RelativePosition {
    /// Rows and columns of the grid that the tables are for.
    ///
    /// # Errors
    /// If a table has no middle row.
    pub fn grid(&self) -> Result<(usize, usize)> {
        let side = |table: &Tensor| match table.dims2()?.0 {
            rows if rows % 2 == 1 => Ok(rows.div_ceil(2)),
            rows => bail!("relative positions: a table of {rows} rows has no row for distance 0"),
        };
        Ok((side(&self.height)?, side(&self.width)?))
    }

    /// The tables for another grid, interpolated linearly.
    ///
    /// # Errors
    /// If a table has no rows.
    pub fn fitted(&self, (rows, columns): (usize, usize)) -> Result<Self> {
        Ok(Self {
            height: resize_relative_position(&self.height, (2 * rows).saturating_sub(1))?,
            width: resize_relative_position(&self.width, (2 * columns).saturating_sub(1))?,
        })
    }

    /// The same without gradient, sharing its storage.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { height: self.height.detach(), width: self.width.detach() }
    }

    /// q · `R_h`[row of q − row of k] + q · `R_w`[column of q − column of k] for the unscaled queries `q`
    /// `[B, H, Kh·Kw, D]` of whole grids → `[B, H, Kh·Kw, Kh·Kw]`.
    ///
    /// # Errors
    /// If the queries are not those of the tables' grid.
    pub(crate) fn scores(&self, q: &Tensor) -> Result<Tensor> {
        let (batch, heads, tokens, dim) = q.dims4()?;
        let (rows, columns) = self.grid()?;
        let q = q.reshape((batch * heads, rows, columns, dim))?;
        let table = distances(&self.height, rows)?; // [rows, rows, D]
        let in_rows = q.broadcast_matmul(&table.transpose(1, 2)?.contiguous()?)?; // [B·H, rows, columns, rows]
        let table = distances(&self.width, columns)?;
        let across = q.transpose(1, 2)?.contiguous()?;
        let in_columns = across.broadcast_matmul(&table.transpose(1, 2)?.contiguous()?)?; // [B·H, columns, rows, columns]
        let in_columns = in_columns.transpose(1, 2)?.unsqueeze(3)?; // [B·H, rows, columns, 1, columns]
        in_rows.unsqueeze(4)?.broadcast_add(&in_columns)?.reshape((batch, heads, tokens, tokens))
    }
}

/// A table `[n, D]` of relative positions for `rows` distances instead of n (linear, half-pixel centres).
///
/// # Errors
/// If it is no table.
pub fn resize_relative_position(table: &Tensor, rows: usize) -> Result<Tensor> {
    let (stored, dim) = table.dims2()?;
    if stored == rows {
        return Ok(table.clone());
    }
    let column = table.t()?.contiguous()?.reshape((1, dim, stored, 1))?;
    resize(&column, (rows, 1), Interpolation::Bilinear { align_corners: false })?
        .reshape((dim, rows))?
        .t()?
        .contiguous()
}

/// `[2·side − 1, D]` → `[side, side, D]`, the row of every query and key.
fn distances(table: &Tensor, side: usize) -> Result<Tensor> {
    let rows: Vec<u32> =
        (0..side * side).map(|i| (i / side + side - 1 - i % side) as u32).collect();
    let rows = Tensor::from_vec(rows, side * side, table.device())?;
    table.index_select(&rows, 0)?.reshape((side, side, table.dim(1)?))
}

/// Both tables as the kernels read them: one column per distance, in falling order, rows before columns. So the values of
/// one query for all keys lie side by side.
#[derive(Debug)]
pub(crate) struct PlaceTable {
    /// `[D, distances]`.
    columns: Vec<f32>,
    /// Rows and columns of the places.
    grid: (usize, usize),
    dim: usize,
}

impl PlaceTable {
    /// The f32 tables of the CPU.
    pub(crate) fn new(positions: &RelativePosition) -> Result<Self> {
        let (height, width) = (positions.height.contiguous()?, positions.width.contiguous()?);
        Self::from_values((&values(&height)?, &values(&width)?), positions.grid()?)
    }

    /// The same from the tables' values.
    pub(crate) fn from_values(
        (height, width): (&[f32], &[f32]),
        grid: (usize, usize),
    ) -> Result<Self> {
        let dim = height.len() / (2 * grid.0 - 1);
        if width.len() != dim * (2 * grid.1 - 1) {
            bail!("relative positions: the two tables differ in width");
        }
        let rows =
            height.chunks_exact(dim.max(1)).rev().chain(width.chunks_exact(dim.max(1)).rev());
        let distances = 2 * (grid.0 + grid.1) - 2;
        let mut columns = vec![0.0; dim * distances];
        for (j, row) in rows.enumerate() {
            row.iter().enumerate().for_each(|(d, &v)| columns[d * distances + j] = v);
        }
        Ok(Self { columns, grid, dim })
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// Columns of the table.
    pub(crate) fn distances(&self) -> usize {
        2 * (self.grid.0 + self.grid.1) - 2
    }

    fn matrix(&self) -> Mat<'_> {
        Mat::new(&self.columns, self.dim, self.distances())
    }

    /// The distances of the query at `place` (row, column): to the keys' rows, then to their columns.
    fn of_query(&self, place: (usize, usize)) -> impl Iterator<Item = usize> {
        let row = self.grid.0 - 1 - place.0;
        let column = 2 * self.grid.0 - 1 + self.grid.1 - 1 - place.1;
        (row..row + self.grid.0).chain(column..column + self.grid.1)
    }

    /// What the unscaled `queries` find for every row and every column of keys, each in its lane of `lanes`.
    pub(crate) fn terms(
        &self,
        queries: &Queries<impl Fn(usize) -> (usize, usize)>,
        lanes: usize,
    ) -> PlaceTerms {
        let (count, width) = (queries.count, self.distances());
        let mut found = scratch(count * width);
        let product = MatMut::new(&mut found, count, width);
        gemm(1.0, queries.matrix(self.dim), self.matrix(), 0.0, product, Threads::One);
        let mut values = scratch((self.grid.0 + self.grid.1) * lanes);
        values.fill(0.0);
        for (i, found) in found.chunks_exact(width).enumerate() {
            let of_lane = values[i..].iter_mut().step_by(lanes);
            of_lane.zip(self.of_query((queries.at)(i))).for_each(|(to, at)| *to = found[at]);
        }
        PlaceTerms { values, grid: self.grid, lanes }
    }

    /// The gradient of [`PlaceTerms::add`] for that of the scores of all keys, `dscores` `[places, lanes]`: adds to `dqueries`,
    /// which lie as the queries do, and to `dtable` `[distances, D]` where it is wanted.
    pub(crate) fn add_gradient(
        &self,
        queries: &Queries<impl Fn(usize) -> (usize, usize)>,
        dscores: &[f32],
        dqueries: &mut [f32],
        dtable: Option<&mut [f32]>,
    ) {
        let (count, width, lanes) =
            (queries.count, self.distances(), dscores.len() / self.places());
        let mut sums = scratch((self.grid.0 + self.grid.1) * lanes);
        sums.fill(0.0);
        vectorised(
            #[inline(always)]
            || {
                let (in_rows, in_columns) = sums.split_at_mut(self.grid.0 * lanes);
                let rows = dscores.chunks_exact(self.grid.1 * lanes);
                for (dscores, of_row) in rows.zip(in_rows.chunks_exact_mut(lanes)) {
                    let each = dscores.chunks_exact(lanes).zip(in_columns.chunks_exact_mut(lanes));
                    for (dscores, of_column) in each {
                        of_row.iter_mut().zip(dscores).for_each(|(sum, g)| *sum += g);
                        of_column.iter_mut().zip(dscores).for_each(|(sum, g)| *sum += g);
                    }
                }
            },
        );
        let mut found = scratch(count * width);
        found.fill(0.0);
        for (i, found) in found.chunks_exact_mut(width).enumerate() {
            let of_lane = sums[i..].iter().step_by(lanes);
            of_lane.zip(self.of_query((queries.at)(i))).for_each(|(sum, at)| found[at] = *sum);
        }
        let found = Mat::new(&found, count, width);
        let dqueries = MatMut::strided(dqueries, (count, self.dim), (queries.stride, 1));
        gemm(1.0, found, self.matrix().t(), 1.0, dqueries, Threads::One);
        if let Some(dtable) = dtable {
            let dtable = MatMut::new(dtable, width, self.dim);
            gemm(1.0, found.t(), queries.matrix(self.dim), 1.0, dtable, Threads::One);
        }
    }

    /// What [`PlaceTable::add_gradient`] summed in `dtable`, as gradients of the tables `[2·Kh − 1, D]`, `[2·Kw − 1, D]`.
    pub(crate) fn table_gradients(&self, dtable: &[f32]) -> Result<(Tensor, Tensor)> {
        let rows = 2 * self.grid.0 - 1;
        let (height, width) = dtable.split_at(rows * self.dim);
        let table = |falling: &[f32]| {
            let rising: Vec<f32> =
                falling.chunks_exact(self.dim).rev().flatten().copied().collect();
            Tensor::from_vec(rising, (falling.len() / self.dim, self.dim), &Device::Cpu)
        };
        Ok((table(height)?, table(width)?))
    }
}

/// Queries at places of a grid.
pub(crate) struct Queries<'a, At: Fn(usize) -> (usize, usize)> {
    /// `stride` values apart.
    pub(crate) rows: &'a [f32],
    pub(crate) count: usize,
    pub(crate) stride: usize,
    /// Row and column of each.
    pub(crate) at: At,
}

impl<At: Fn(usize) -> (usize, usize)> Queries<'_, At> {
    fn matrix(&self, dim: usize) -> Mat<'_> {
        Mat::strided(self.rows, (self.count, dim), (self.stride, 1))
    }
}

/// What queries, each in a lane, add to their scores.
pub(crate) struct PlaceTerms {
    /// For the rows of keys, then for their columns, `[rows + columns, lanes]`.
    values: Scratch,
    grid: (usize, usize),
    lanes: usize,
}

impl PlaceTerms {
    /// Adds to the `scores` `[keys, lanes]` of the keys from number `first` on.
    pub(crate) fn add(&self, first: usize, scores: &mut [f32]) {
        let term = |i: usize| &self.values[i * self.lanes..][..self.lanes];
        vectorised(
            #[inline(always)]
            || {
                for (i, scores) in scores.chunks_exact_mut(self.lanes).enumerate() {
                    let (row, column) = ((first + i) / self.grid.1, (first + i) % self.grid.1);
                    let both = term(row).iter().zip(term(self.grid.0 + column));
                    scores.iter_mut().zip(both).for_each(|(score, (h, w))| *score += h + w);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};

    #[test]
    fn distances_by_hand() -> Result<()> {
        // One head, one channel, a grid of 1 × 2: column distances −1, 0, 1 hold 10, 20, 30 and row distance 0 holds 1.
        let positions = RelativePosition {
            height: Tensor::new(&[[1f64]], &Device::Cpu)?,
            width: Tensor::new(&[[10f64], [20.0], [30.0]], &Device::Cpu)?,
        };
        let q = Tensor::new(&[1f64, 2.0], &Device::Cpu)?.reshape((1, 1, 2, 1))?;
        // Query 0 sees itself at distance 0 and key 1 at −1; query 1 sees key 0 at 1.
        let scores = positions.scores(&q)?.flatten_all()?.to_vec1::<f64>()?;
        assert_eq!(scores, [21.0, 11.0, 62.0, 42.0]);
        Ok(())
    }

    #[test]
    fn the_gradients_are_right() -> Result<()> {
        let inputs = [normal(&[1, 2, 6, 3], 1)?, normal(&[3, 3], 2)?, normal(&[5, 3], 3)?];
        check(
            |t| RelativePosition { height: t[1].clone(), width: t[2].clone() }.scores(&t[0]),
            &inputs,
        )?;
        check(|t| resize_relative_position(&t[0], 7), &[normal(&[5, 2], 1)?])
    }

    #[test]
    fn an_interpolated_table_keeps_its_middle_and_its_slope() -> Result<()> {
        let table = Tensor::new(&[[0f32], [3.0], [6.0]], &Device::Cpu)?;
        // torch.nn.functional.interpolate([0, 3, 6], size=5, mode="linear").
        let resized = resize_relative_position(&table, 5)?.flatten_all()?.to_vec1::<f32>()?;
        let expected = [0.0, 1.2, 3.0, 4.8, 6.0];
        assert!(resized.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{resized:?}");
        Ok(())
    }
}
