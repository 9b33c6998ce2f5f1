//! What a file says about places, brought to the model's: position embeddings, relative positions, prefix tokens.

use candle_core::{DType, Tensor};

use super::Loading;
use crate::backbone::resize_pos_embed;
use crate::ops::resize_relative_position;
use crate::weights::layout::square_grid;
use crate::{Error, Result};

impl Loading<'_> {
    /// A model without class token has no prefix at all, as ViTDet: the file's class and register tokens are left out.
    pub(super) fn leave_prefix_tokens(&mut self) {
        if self.shape(&self.options.full("cls_token")).is_some() {
            return;
        }
        for token in ["cls_token", "reg_token"] {
            let name = self.options.full(token);
            if self.tensors.remove(&name).is_some() {
                self.ignored.push(name);
            }
        }
    }

    /// Tables of relative positions for other windows or images are interpolated.
    pub(super) fn fit_relative_positions(&mut self) -> Result<Vec<String>> {
        let mut notes = vec![];
        for (name, tensor) in &mut self.tensors {
            if !name.ends_with(".attn.rel_pos_h") && !name.ends_with(".attn.rel_pos_w") {
                continue;
            }
            let wanted = self.store.get(name).map(|param| param.var.dims().to_vec());
            let (&[rows, width], Some(&[model_rows, model_width])) =
                (tensor.dims(), wanted.as_deref())
            else {
                continue;
            };
            if rows != model_rows && width == model_width && rows > 0 {
                *tensor = resize_relative_position(&tensor.to_dtype(DType::F32)?, model_rows)?;
                notes.push(format!("{name} of {rows} distances → {model_rows}"));
            }
        }
        Ok(notes)
    }

    /// Bring the position embedding to the model's grid and prefix.
    pub(super) fn fit_positions(&mut self) -> Result<Vec<String>> {
        let name = self.options.full("pos_embed");
        let (Some(stored), Some(shape)) = (self.tensors.get(&name).cloned(), self.shape(&name))
        else {
            return Ok(vec![]);
        };
        let (&[1, rows, width], &[_, model_rows, model_width]) = (stored.dims(), &shape[..]) else {
            return Ok(vec![]);
        };
        if width != model_width {
            // `check_shapes` says what is wrong.
            return Ok(vec![]);
        }
        let to = self.options.grid;
        let Some(model_prefix) = model_rows.checked_sub(to.0 * to.1) else {
            return Err(Error::usage(format!(
                "`{name}` has {model_rows} rows, fewer than the grid {}×{}",
                to.0, to.1
            )));
        };
        let registers = self
            .tensors
            .get(&self.options.full("reg_token"))
            .map_or(Ok(0), |token| token.dim(1))?;
        let Some((prefix, from)) = source_grid(rows, registers, to) else {
            let reason = format!("`pos_embed` has {rows} rows, which are no square grid");
            return Err(Error::file(self.path, reason)
                .with_hint("set `backbone.pos_embed_grid` to its rows and columns"));
        };
        let resized = resize_pos_embed(&stored.to_dtype(DType::F32)?, prefix, from, to)?;
        let fitted = self.fit_prefix(&resized, prefix, model_prefix)?;
        self.tensors.insert(name, fitted);
        let mut notes = vec![];
        if from != to {
            notes.push(format!("pos_embed {}×{} → {}×{}", from.0, from.1, to.0, to.1));
        }
        if prefix != model_prefix {
            notes.push(format!("pos_embed of {prefix} prefix tokens → {model_prefix}"));
        }
        Ok(notes)
    }

    /// Rows for `prefix` class and register tokens → rows for `wanted`.
    fn fit_prefix(&mut self, positions: &Tensor, prefix: usize, wanted: usize) -> Result<Tensor> {
        if prefix == wanted {
            return Ok(positions.clone());
        }
        let (_, rows, width) = positions.dims3()?;
        let patches = positions.narrow(1, prefix, rows - prefix)?.contiguous()?;
        if wanted == 0 {
            // The tokens take their own rows with them: (token + position) is all that the blocks ever see.
            for (index, token) in ["cls_token", "reg_token"].into_iter().enumerate().take(prefix) {
                let name = self.options.full(token);
                let Some(value) = self.tensors.get(&name) else { continue };
                let count = value.dim(1)?;
                let own = positions.narrow(1, index, count)?;
                let sum = (value.to_dtype(DType::F32)? + own)?;
                self.tensors.insert(name, sum);
            }
            return Ok(patches);
        }
        if prefix > wanted {
            let reason =
                format!("`pos_embed` is for {prefix} prefix tokens, the model has {wanted}");
            return Err(Error::file(self.path, reason).with_hint(self.fitting_config()));
        }
        // DINOv2 gives its registers no position.
        let none = Tensor::zeros((1, wanted - prefix, width), DType::F32, positions.device())?;
        Ok(Tensor::cat(&[&positions.narrow(1, 0, prefix)?, &none, &patches], 1)?)
    }
}

/// How many of a stored position embedding's rows belong to prefix tokens, and the grid of the others: the model's own
/// grid if it fits, else a square.
fn source_grid(
    rows: usize,
    registers: usize,
    model: (usize, usize),
) -> Option<(usize, (usize, usize))> {
    let same = [1 + registers, 1, 0].into_iter().find(|&prefix| rows == prefix + model.0 * model.1);
    let square = || square_grid(rows, registers).map(|(prefix, side)| (prefix, (side, side)));
    same.map(|prefix| (prefix, model)).or_else(square)
}
