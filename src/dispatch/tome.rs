//! Merging similar tokens: \[ToMe\] Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023, arXiv 2210.09461, §3.
//!
//! Between the attention and the MLP of every block, r tokens join those that they resemble most; the work of all that
//! follows shrinks for every token, active or not. Class and register tokens neither join nor are joined.

use candle_core::{D, DType, Result, Tensor};

/// The tokens of one forward pass: how many patches each stands for.
#[derive(Debug)]
pub(crate) struct Merger {
    r: usize,
    prefix: usize,
    /// `[B, N]`; `None` before anything was merged.
    sizes: Option<Tensor>,
}

/// How many of `tokens` tokens, the first `prefix` of them no patches, are left when `r` were to join others: half of the
/// patches can.
pub(crate) fn tokens_left(tokens: usize, prefix: usize, r: usize) -> usize {
    tokens - r.min(candidates(tokens, prefix).0.len())
}

/// How many tokens are compared with how many.
pub(crate) fn comparisons(tokens: usize, prefix: usize) -> (usize, usize) {
    let (joining, joined) = candidates(tokens, prefix);
    (joining.len(), joined.len())
}

/// \[ToMe\] §3, bipartite soft matching: the tokens of even number may join those of odd number. Nobody may where there are
/// none of these.
fn candidates(tokens: usize, prefix: usize) -> (Vec<u32>, Vec<u32>) {
    let (even, odd): (Vec<u32>, Vec<u32>) =
        (prefix as u32..tokens as u32).partition(|token| token % 2 == 0);
    if odd.is_empty() { (Vec::new(), odd) } else { (even, odd) }
}

impl Merger {
    /// `r` tokens join others in every block; the first `prefix` never do.
    pub(crate) fn new(r: usize, prefix: usize) -> Self {
        Self { r, prefix, sizes: None }
    }

    /// How many patches every token stands for, `[B, N]`: as many keys it counts in the attention (\[ToMe\] Eq. 1).
    pub(crate) fn sizes(&self) -> Option<&Tensor> {
        self.sizes.as_ref()
    }

    /// The tokens `x` `[B, N, C]` after the merging, compared by the cosine of their `keys` `[B, N, D]`, the most alike
    /// first: `[B, N − r, C]`, first the prefix, then those of even number that are left, then those of odd number, each the
    /// mean of all that joined it, weighted by their sizes.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub(crate) fn merge(&mut self, x: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        let left = tokens_left(tokens, self.prefix, self.r);
        if left == tokens {
            return Ok(x.clone());
        }
        let sizes = match &self.sizes {
            Some(sizes) => sizes.reshape((batch * tokens, 1))?,
            None => Tensor::ones((batch * tokens, 1), x.dtype(), x.device())?,
        };
        let places = Tensor::new(self.places(keys, left)?, x.device())?;
        let gathered = |values: &Tensor| -> Result<Tensor> {
            let zeros = Tensor::zeros((batch * left, values.dim(1)?), x.dtype(), x.device())?;
            zeros.index_add(&places, values, 0)
        };
        let merged_sizes = gathered(&sizes)?;
        let x = x.reshape((batch * tokens, channels))?.broadcast_mul(&sizes)?;
        let merged = gathered(&x)?.broadcast_div(&merged_sizes)?;
        self.sizes = Some(merged_sizes.reshape((batch, left))?);
        merged.reshape((batch, left, channels))
    }

    /// For every row of the tokens the row, of `left` for each image, that it goes to.
    fn places(&self, keys: &Tensor, left: usize) -> Result<Vec<u32>> {
        let (batch, tokens, _) = keys.dims3()?;
        let (joining, joined) = candidates(tokens, self.prefix);
        let keys = keys.detach();
        let keys = keys.broadcast_div(&keys.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?;
        let of = |tokens: &[u32]| keys.index_select(&Tensor::new(tokens, keys.device())?, 1);
        let alike = of(&joining)?.matmul(&of(&joined)?.transpose(1, 2)?.contiguous()?)?;
        let best = alike.argmax(2)?.to_vec2::<u32>()?;
        let alike = alike.max(2)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let mut places = Vec::with_capacity(batch * tokens);
        for (image, (best, alike)) in best.iter().zip(&alike).enumerate() {
            let mut order: Vec<usize> = (0..joining.len()).collect();
            order.sort_by(|&a, &b| alike[b].total_cmp(&alike[a])); // stable: the first of equals joins first
            let mut joins = vec![false; joining.len()];
            order[..tokens - left].iter().for_each(|&i| joins[i] = true);
            let stay = joins.iter().filter(|joins| !**joins).count();
            // Within the image: the prefix, those of even number that stay, those of odd number.
            let mut place = vec![0; tokens];
            (0..self.prefix).for_each(|token| place[token] = token);
            let odd = |i: usize| self.prefix + stay + i;
            joined.iter().enumerate().for_each(|(i, &token)| place[token as usize] = odd(i));
            let mut staying = self.prefix..;
            for (i, &token) in joining.iter().enumerate() {
                place[token as usize] = match joins[i] {
                    true => odd(best[i] as usize),
                    false => staying.next().unwrap_or_default(),
                };
            }
            places.extend(place.into_iter().map(|place| (image * left + place) as u32));
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use candle_core::Device;

    #[test]
    fn half_of_the_patches_can_join_and_no_prefix() {
        // 197 tokens: 98 even ones beside the class token.
        assert_eq!([8, 98, 150].map(|r| tokens_left(197, 1, r)), [189, 99, 99]);
        // Four patches after two others: 2 and 4 may join 3 and 5.
        assert_eq!((candidates(6, 2), tokens_left(6, 2, 8)), ((vec![2, 4], vec![3, 5]), 4));
        assert_eq!((tokens_left(1, 0, 8), tokens_left(2, 1, 8), tokens_left(2, 0, 8)), (1, 2, 1));
    }

    #[test]
    fn the_most_alike_are_averaged_by_hand() -> Result<()> {
        let tensor = |values: &[f32], width| {
            Tensor::from_slice(values, (1, values.len() / width, width), &Device::Cpu)
        };
        // A class token and five patches. 2 resembles 5, 4 resembles 1; 2 and 5 are more alike.
        let keys = tensor(&[1., 1., 1., 0., 0., 2., -1., -1., 3., 1., 0., 9.], 2)?;
        let mut merger = Merger::new(1, 1);
        let x = merger.merge(&tensor(&[9., 1., 2., 3., 4., 6.], 1)?, &keys)?;
        // Class token, 4, then 1, 3 and the mean of 5 and 2.
        assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, [9., 4., 1., 3., 4.]);
        assert_eq!(merger.sizes().unwrap().to_vec2::<f32>()?, [[1., 1., 1., 1., 2.]]);
        // Numbers 2 (once 1) and 4 (once 5 and 2) may join 1 (once 4) and 3: 4 joins 1 with the weight 2.
        let keys = tensor(&[1., 1., 1., 0., 0., 1., 0., -1., 2., 0.], 2)?;
        let x = merger.merge(&x, &keys)?;
        assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, [9., 1., 4., 3.]);
        assert_eq!(merger.sizes().unwrap().to_vec2::<f32>()?, [[1., 1., 3., 1.]]);
        Ok(())
    }

    #[test]
    fn the_gradient_goes_to_all_that_joined() -> Result<()> {
        let keys = normal(&[2, 7, 4], 2)?;
        let twice = |x: &Tensor| {
            let mut merger = Merger::new(2, 1);
            let once = merger.merge(x, &keys)?;
            merger.merge(&once, &normal(&[2, 5, 4], 3)?)
        };
        check(|t| twice(&t[0]), &[normal(&[2, 7, 3], 1)?])
    }
}
