//! A 3×3 convolution of maps that lie side by side, those that are enlarged first without the enlarged maps.
//!
//! Mixing channels and bilinear resizing commute, so with up(·) the resizing and W_t the matrix of tap t
//! `conv3x3(up(x)) = Σ_t shift_t(up(W_t · x))`: the product runs at the map's own size, a fraction 1/k² of the pixels, and
//! what it gives is enlarged, shifted (zeros come in from beyond the edge) and added.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Device, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::conv2d::{Geometry, transpose};
use super::epilogue::Epilogue;
use super::fresh::{Fresh, bundle};
use super::host::values;
use super::resize::{Interpolation, axis};
use super::rows::{filled, scratch, zeros};
use super::separable::{Axis, Dense, Taps};
use super::spent::spend;
use super::vector::vectorised;
use super::{Conv2d, NormRelu, conv2d, count, fusible, resize_bilinear};

/// `conv2d(cat(resize_bilinear(part, size) for each part), weight)` with padding 1; the `parts` `[B, Cᵢ, hᵢ, wᵢ]`, `weight`
/// `[O, Σ Cᵢ, 3, 3]` → `[B, O, H, W]`.
///
/// # Errors
/// If the shapes do not fit together or a side is 0.
pub fn conv3x3_joined(parts: &[Tensor], weight: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    match Joined::new(parts, weight, size)? {
        Some(joined) => joined.tensor(weight),
        None => composed(parts, weight, size),
    }
}

/// [`conv3x3_joined`], then batch norm and ReLU, in one pass as [`conv2d_norm_relu`](super::conv2d_norm_relu).
///
/// # Errors
/// As [`conv3x3_joined`] and [`NormRelu::forward`].
pub fn conv3x3_joined_norm_relu(
    parts: &[Tensor],
    weight: &Tensor,
    size: (usize, usize),
    then: NormRelu,
) -> Result<Tensor> {
    let all: Vec<&Tensor> = parts.iter().chain([weight]).collect();
    if let Some(folded) = then.folded(weight.dim(0)?, &all)?
        && let Some(joined) = Joined::new(parts, weight, size)?
    {
        count("conv_of_resized.norm_relu");
        let weight = weight.contiguous()?;
        let y = joined.forward(&values(&weight)?, folded.with_relu())?;
        return then.folded_into(y, joined.shape());
    }
    then.forward(&conv3x3_joined(parts, weight, size)?)
}

/// Enlarged, side by side, convolved.
fn composed(parts: &[Tensor], weight: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let whole = parts.iter().map(|part| resize_bilinear(part, size)).collect::<Result<Vec<_>>>()?;
    conv2d(&Tensor::cat(&whole, 1)?, weight, None, Conv2d::same(3))
}

/// All parts, each with its way.
struct Joined {
    /// Those of the full size come first.
    parts: Vec<Part>,
    batch: usize,
    /// Channels of all parts together.
    inputs: usize,
    outputs: usize,
    size: (usize, usize),
}

/// A map, contiguous.
struct Part {
    x: Tensor,
    /// Its channels among those of the weight.
    channels: Range<usize>,
    /// From its channels to those of the output, or to nine maps for each.
    mix: Geometry,
    /// How nine maps become one; `None` for a map of the full size.
    spread: Option<Spread>,
}

impl Joined {
    /// `None` where the fused form does not run.
    fn new(parts: &[Tensor], weight: &Tensor, size: (usize, usize)) -> Result<Option<Self>> {
        let (outputs, inputs, kh, kw) = weight.dims4()?;
        let channels = parts.iter().map(|part| part.dim(1)).sum::<Result<usize>>()?;
        let Some(batch) = parts.first().map(|part| part.dim(0)).transpose()? else {
            bail!("conv_of_resized: there are no parts")
        };
        if (kh, kw) != (3, 3) || channels != inputs {
            bail!(
                "conv_of_resized: parts of {channels} channels in all do not fit a weight {:?}",
                weight.dims()
            );
        }
        let all: Vec<&Tensor> = parts.iter().chain([weight]).collect();
        if !fusible(&all) || parts.iter().any(|part| part.elem_count() == 0) {
            return Ok(None);
        }
        let (mut first, mut ways) = (0, Vec::new());
        for part in parts {
            let (images, channels, height, width) = part.dims4()?;
            if images != batch {
                bail!("conv_of_resized: parts of {batch} and of {images} images");
            }
            let small = mixes_before_resizing((height, width), size);
            let x = if small { part.clone() } else { resize_bilinear(part, size)? };
            let (kernel, conv) = if small { (1, Conv2d::default()) } else { (3, Conv2d::same(3)) };
            let maps = if small { 9 * outputs } else { outputs };
            let kernel = Shape::from((maps, channels, kernel, kernel));
            ways.push(Part {
                mix: Geometry::new(x.shape(), &kernel, conv)?,
                x: x.contiguous()?,
                channels: first..first + channels,
                spread: small.then(|| Spread::new((height, width), size)),
            });
            first += channels;
        }
        ways.sort_by_key(|part| part.spread.is_some());
        Ok(Some(Self { parts: ways, batch, inputs, outputs, size }))
    }

    fn shape(&self) -> Shape {
        Shape::from((self.batch, self.outputs, self.size.0, self.size.1))
    }

    /// The output with its gradients; mixed maps are not kept, as they have nine times its channels.
    fn tensor(self, weight: &Tensor) -> Result<Tensor> {
        count("conv_of_resized");
        let weight = weight.contiguous()?;
        let y = self.forward(&values(&weight)?, Epilogue::bias(None))?;
        let y = Fresh::on_cpu(y, self.shape());
        let mut xs: Vec<Tensor> = self.parts.iter().map(|part| part.x.clone()).collect();
        let rest = xs.split_off(1);
        let rest = if rest.is_empty() { None } else { Some(bundle(&rest)?) };
        let inputs: Vec<&Tensor> = xs.iter().chain([&weight]).chain(&rest).collect();
        y.with_gradient(&inputs, move |inputs, y, grad| {
            spend(y)?;
            count("conv_of_resized.backward");
            let wanted = [0, 1, 2].map(|i| inputs.get(i).is_some_and(|input| input.track_op()));
            let found = self.gradients(&values(inputs[1])?, &values(grad)?, wanted)?;
            spend(grad)?;
            let tensor = |(values, input): (Option<Vec<f32>>, &&Tensor)| {
                values.map(|v| Tensor::from_vec(v, input.shape(), &Device::Cpu)).transpose()
            };
            found.into_iter().zip(inputs).map(tensor).collect()
        })
    }

    /// `weight` `[O, Σ Cᵢ, 3, 3]`.
    fn forward(&self, weight: &[f32], epilogue: Epilogue) -> Result<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        let nothing = Epilogue::bias(None);
        for (i, part) in self.parts.iter().enumerate() {
            let then = if i + 1 == self.parts.len() { epilogue } else { nothing };
            let x = values(&part.x)?;
            let matrix = self.matrix(part, weight);
            match (&part.spread, &mut sum) {
                (None, None) => sum = Some(part.mix.forward(&x, &matrix, then)),
                (None, Some(sum)) => {
                    let y = part.mix.forward(&x, &matrix, nothing);
                    let area = self.size.0 * self.size.1;
                    let planes = sum.par_chunks_mut(area).zip(y.par_chunks(area)).enumerate();
                    planes.for_each(|(plane, (sum, y))| {
                        let finish = then.of(plane % self.outputs);
                        sum.iter_mut().zip(y).for_each(|(sum, y)| *sum = finish.of(*sum + y));
                    });
                }
                (Some(spread), sum) => {
                    let sum = sum.get_or_insert_with(|| zeros(self.shape().elem_count()));
                    // Nine maps for each of the output's are many: image by image.
                    let images = sum.chunks_mut(self.outputs * self.size.0 * self.size.1);
                    for (sum, x) in images.zip(x.chunks(x.len() / self.batch)) {
                        let mixed = part.mix.of_one_image().forward(x, &matrix, nothing);
                        spread.spread(&mixed, sum, then);
                    }
                }
            }
        }
        Ok(sum.unwrap_or_default())
    }

    /// The part's share of the weight `[O, Σ Cᵢ, 3, 3]`: `[O, Cᵢ, 3, 3]`, or of one that is mixed first `[O · 9, Cᵢ]`.
    fn matrix<'a>(&self, part: &Part, weight: &'a [f32]) -> Cow<'a, [f32]> {
        let channels = part.channels.len();
        if part.spread.is_none() && channels == self.inputs {
            return Cow::Borrowed(weight);
        }
        let of_output = |o: usize, to: &mut [f32]| {
            let from = &weight[(o * self.inputs + part.channels.start) * 9..][..9 * channels];
            match part.spread {
                Some(_) => transpose(from, 9, (channels, 9), to),
                None => to.copy_from_slice(from),
            }
        };
        Cow::Owned(filled(self.outputs * channels * 9, channels * 9, of_output))
    }

    /// The gradients of the first part, of the weight, and of all other parts one after the other, as far as they are wanted.
    fn gradients(
        &self,
        weight: &[f32],
        grad: &[f32],
        wanted: [bool; 3],
    ) -> Result<[Option<Vec<f32>>; 3]> {
        let mut found = [None, wanted[1].then(|| zeros(weight.len())), None];
        for (i, part) in self.parts.iter().enumerate() {
            let of_map = if i == 0 { 0 } else { 2 };
            let matrix = if wanted[of_map] { self.matrix(part, weight) } else { Cow::default() };
            let [dx, dmatrix] = part.gradients(&matrix, grad, (wanted[of_map], wanted[1]))?;
            match (&mut found[of_map], dx) {
                (Some(all), Some(dx)) => all.extend(dx),
                (none, dx) => *none = dx,
            }
            if let (Some(dw), Some(dmatrix)) = (&mut found[1], dmatrix) {
                self.place(part, &dmatrix, dw);
            }
        }
        Ok(found)
    }

    /// The transpose of [`Self::matrix`].
    fn place(&self, part: &Part, from: &[f32], weight: &mut [f32]) {
        let channels = part.channels.len();
        let rows = weight.par_chunks_exact_mut(9 * self.inputs).zip(from.par_chunks(9 * channels));
        rows.for_each(|(to, from)| {
            let to = &mut to[9 * part.channels.start..][..9 * channels];
            match part.spread {
                Some(_) => transpose(from, channels, (9, channels), to),
                None => to.copy_from_slice(from),
            }
        });
    }
}

impl Part {
    /// The gradients of the map (for which the `matrix` is needed) and of the matrix, as far as they are wanted.
    fn gradients(
        &self,
        matrix: &[f32],
        grad: &[f32],
        (wanted, trained): (bool, bool),
    ) -> Result<[Option<Vec<f32>>; 2]> {
        let (x, nothing) = (values(&self.x)?, Epilogue::bias(None));
        let Some(spread) = &self.spread else {
            let dx = wanted.then(|| self.mix.input_gradient(matrix, grad, nothing));
            return Ok([dx, trained.then(|| self.mix.weight_gradient(&x, grad))]);
        };
        let (mix, batch) = (self.mix.of_one_image(), self.x.dim(0)?);
        let mut dx = wanted.then(|| Vec::with_capacity(x.len()));
        let mut dmatrix = trained.then(|| zeros(self.mix.weight_count()));
        for (x, grad) in x.chunks(x.len() / batch).zip(grad.chunks(grad.len() / batch)) {
            let mixed = spread.gather(grad);
            if let Some(dx) = &mut dx {
                dx.extend(mix.input_gradient(matrix, &mixed, nothing));
            }
            if let Some(dmatrix) = &mut dmatrix {
                mix.add_weight_gradient(x, &mixed, dmatrix);
            }
        }
        Ok([dx, dmatrix])
    }
}

/// Whether nine products at the size `from` cost clearly less than the convolution at the size `to`.
pub fn mixes_before_resizing(from: (usize, usize), to: (usize, usize)) -> bool {
    let (small, large) = (from.0 * from.1, to.0 * to.1);
    small > 0 && 2 * small <= large
}

/// Nine maps per output, enlarged, shifted by the place of their tap and added.
struct Spread {
    /// Enlarging and shifting by −1, 0 and 1, along the rows and along the columns.
    rows: [Axis; 3],
    columns: [Axis; 3],
    from: (usize, usize),
    to: (usize, usize),
}

impl Spread {
    fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        let shifted = |n: usize, m: usize| {
            let whole = axis(n, m, Interpolation::Bilinear { align_corners: false });
            [0, 1, 2].map(|tap| {
                // Output j sees the enlarged sample j + tap − 1.
                let seen = |j: usize| (j + tap).checked_sub(1).and_then(|j| whole.rows.get(j));
                let nothing = Taps { start: 0, weights: Vec::new() };
                let rows = (0..m).map(|j| seen(j).unwrap_or(&nothing).clone()).collect();
                Axis { inputs: n, rows }
            })
        };
        Self { rows: shifted(from.0, to.0), columns: shifted(from.1, to.1), from, to }
    }

    /// Adds to the maps `out` of an image, which are done then.
    fn spread(&self, x: &[f32], out: &mut [f32], then: Epilogue) {
        let (small, large) = (self.from.0 * self.from.1, self.to.0 * self.to.1);
        let (rows, columns) =
            (self.rows.each_ref().map(Dense::new), self.columns.each_ref().map(Dense::new));
        let maps = out.par_chunks_exact_mut(large).zip(x.par_chunks_exact(9 * small)).enumerate();
        maps.for_each(|(map, (out, x))| {
            let finish = then.of(map);
            vectorised(
                #[inline(always)]
                || {
                    let (height, width) = (self.from.0, self.to.1);
                    let mut lines = scratch(height * width);
                    let mut part = scratch(width);
                    for (maps, rows) in x.chunks_exact(3 * small).zip(&rows) {
                        for (y, line) in lines.chunks_exact_mut(width).enumerate() {
                            line.fill(0.0);
                            for (map, columns) in maps.chunks_exact(small).zip(&columns) {
                                columns.along(&map[y * self.from.1..][..self.from.1], &mut part);
                                line.iter_mut().zip(&*part).for_each(|(line, part)| *line += part);
                            }
                        }
                        for (i, out) in out.chunks_exact_mut(width).enumerate() {
                            rows.one_across(i, &lines[rows.start[i] * width..], &mut part);
                            out.iter_mut().zip(&*part).for_each(|(out, part)| *out += part);
                        }
                    }
                    if !then.is_nothing() {
                        out.iter_mut().for_each(|v| *v = finish.of(*v));
                    }
                },
            );
        });
    }

    /// The transpose of [`Self::spread`].
    fn gather(&self, grad: &[f32]) -> Vec<f32> {
        let (small, large) = (self.from.0 * self.from.1, self.to.0 * self.to.1);
        let rows = self.rows.each_ref().map(Dense::new);
        let columns = self.columns.each_ref().map(|axis| Dense::new(&axis.transposed()));
        filled(grad.len() / large * 9 * small, 9 * small, |map, out| {
            let grad = &grad[map * large..][..large];
            vectorised(
                #[inline(always)]
                || {
                    let (height, width) = (self.from.0, self.to.1);
                    let mut lines = scratch(height * width);
                    for (maps, rows) in out.chunks_exact_mut(3 * small).zip(&rows) {
                        lines.fill(0.0);
                        for (i, grad) in grad.chunks_exact(width).enumerate() {
                            rows.one_back(i, grad, &mut lines[rows.start[i] * width..]);
                        }
                        for (map, columns) in maps.chunks_exact_mut(small).zip(&columns) {
                            for (line, to) in
                                lines.chunks_exact(width).zip(map.chunks_exact_mut(self.from.1))
                            {
                                columns.along(line, to);
                            }
                        }
                    }
                },
            );
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::relative_difference;
    use crate::ops::kernel_calls;
    use crate::ops::twin::{assert_twins, random};

    /// Parts of two images, four channels the first, one more each of the next, and five outputs.
    fn inputs(sizes: &[(usize, usize)]) -> Result<Vec<Tensor>> {
        let part =
            |(i, size): (usize, &(usize, usize))| random(&[2, 4 + i, size.0, size.1], 1 + i as u64);
        let mut inputs = sizes.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?;
        let channels = inputs.iter().map(|part| part.dim(1)).sum::<Result<usize>>()?;
        inputs.push(random(&[5, channels, 3, 3], 9)?);
        Ok(inputs)
    }

    fn joined(t: &[Tensor], size: (usize, usize)) -> Result<Tensor> {
        let (weight, parts) = t.split_last().expect("a weight");
        conv3x3_joined(parts, weight, size)
    }

    #[test]
    fn it_is_the_convolution_of_the_enlarged_maps() -> Result<()> {
        // Twice, by an odd ratio along each axis, eightfold, from the single pixel of a pooled map, to a single row; one that
        // hardly grows; as a fuse convolution has them, out of order, as pyramid pooling has them.
        let cases: [(&[(usize, usize)], _); 8] = [
            (&[(8, 8)], (16, 16)),
            (&[(5, 7)], (19, 30)),
            (&[(3, 2)], (24, 16)),
            (&[(1, 1)], (9, 6)),
            (&[(1, 2)], (1, 5)),
            (&[(8, 8)], (9, 9)),
            (&[(4, 4), (16, 12), (8, 6), (15, 12), (2, 2)], (16, 12)),
            (&[(9, 9), (1, 1), (2, 2), (3, 3), (6, 6)], (9, 9)),
        ];
        for (parts, size) in cases {
            let inputs = inputs(parts)?;
            assert_twins("conv_of_resized", 1e-5, &inputs, |t| joined(t, size))?;
            // Frozen but for the last part and the weight.
            let (frozen, rest) = inputs.split_at(inputs.len().saturating_sub(2));
            assert_twins("conv_of_resized", 1e-5, rest, |t| joined(&[frozen, t].concat(), size))?;
        }
        Ok(())
    }

    #[test]
    fn at_real_width_it_stays_within_rounding() -> Result<()> {
        let inputs = [
            random(&[1, 768, 18, 23], 1)?,
            random(&[1, 768, 9, 11], 2)?,
            (random(&[64, 1536, 3, 3], 3)? * 0.02)?,
        ];
        assert_twins("conv_of_resized", 1e-5, &inputs, |t| joined(t, (18, 23)))
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let mut inputs = inputs(&[(4, 4), (2, 2)])?;
        assert!(joined(&inputs[1..], (4, 4)).is_err() && joined(&inputs[2..], (4, 4)).is_err());
        inputs[1] = random(&[1, 5, 2, 2], 1)?;
        assert!(joined(&inputs, (4, 4)).is_err());
        Ok(())
    }

    #[test]
    fn the_norm_is_folded_where_no_gradient_is_wanted() -> Result<()> {
        let inputs = inputs(&[(12, 12), (6, 6), (3, 3)])?;
        let norm = crate::ops::map_tests::trained_norm(5)?;
        let (weight, parts) = inputs.split_last().expect("a weight");
        let apart = conv3x3_joined(parts, weight, (12, 12))?;
        let then = norm.relu(crate::ops::NormMode::Running);
        let apart = then.forward(&apart)?;
        let before = kernel_calls("conv_of_resized.norm_relu");
        let folded = conv3x3_joined_norm_relu(parts, weight, (12, 12), then)?;
        assert_eq!(kernel_calls("conv_of_resized.norm_relu"), before + 1);
        assert!(relative_difference(&folded, &apart)? < 1e-5);
        Ok(())
    }
}
