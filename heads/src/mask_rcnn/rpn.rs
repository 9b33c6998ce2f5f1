//! The region proposal network: scores and corrections of anchors, its losses, its proposals.

use candle_core::{Device, Result, Tensor, bail};
use rescatter::boxes::BoxCoder;
use rescatter::data::Instances;
use rescatter::head::{StepContext, Term};
use rescatter::ops;
use rescatter::params::{Init, Scope};
use rescatter::rng::Purpose;

use super::config::{Norm, RpnConfig};
use super::layers::{ConvBlock, Projection};
use super::matcher::{Label, Matcher, ignore_crowds};
use super::proposals::{Level, ProposalOptions, ProposalSet, propose};
use super::sampler::sample;

/// Layer of the random streams that sample anchors.
const STREAM: u16 = 0;

/// 3×3 convolutions, then an objectness score and four deltas per anchor; the same weights on every level.
#[derive(Debug, Clone)]
pub struct RpnHead {
    conv: Vec<ConvBlock>,
    cls_logits: Projection,
    bbox_pred: Projection,
}

/// What it says of every anchor, level by level, flattened in the order row, column, anchor.
#[derive(Debug, Clone)]
pub struct RpnOutput {
    /// `[B, nₗ]`.
    pub logits: Vec<Tensor>,
    /// `[B, nₗ, 4]`.
    pub deltas: Vec<Tensor>,
}

impl RpnHead {
    /// On maps of `channels`, with `ratios` anchors per position; names below `scope` (that of `rpn.head`).
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(channels: usize, ratios: usize, convs: usize, scope: &Scope) -> Result<Self> {
        let init = Init::Normal(0.01);
        let both = (channels, channels);
        Ok(Self {
            conv: ConvBlock::stack(convs, both, Norm::None, init, &scope.pp("conv"))?,
            cls_logits: Projection::pointwise((channels, ratios), init, &scope.pp("cls_logits"))?,
            bbox_pred: Projection::pointwise((channels, 4 * ratios), init, &scope.pp("bbox_pred"))?,
        })
    }

    /// `levels`: `[B, C, hₗ, wₗ]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, levels: &[Tensor]) -> Result<RpnOutput> {
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for level in levels {
            let mut x = level.clone();
            for conv in &self.conv {
                x = conv.forward(&x)?;
            }
            let batch = x.dim(0)?;
            let last = |map: Tensor| map.permute((0, 2, 3, 1))?.contiguous();
            logits.push(last(self.cls_logits.forward(&x)?)?.reshape((batch, ()))?);
            deltas.push(last(self.bbox_pred.forward(&x)?)?.reshape((batch, (), 4))?);
        }
        Ok(RpnOutput { logits, deltas })
    }
}

impl RpnHead {
    /// Scores `[N]` and deltas `[N, 4]` of single anchors, each given by its image and its number through all levels.
    ///
    /// The same numbers as [`RpnHead::forward`]'s. A loss looks at a few hundred of some hundred thousand anchors, and only the
    /// surroundings of those are computed and differentiated here.
    ///
    /// # Errors
    /// If an anchor is not there or the channels differ.
    pub fn at(&self, levels: &[Tensor], anchors: &[(usize, usize)]) -> Result<(Tensor, Tensor)> {
        let ratios = self.cls_logits.bias.elem_count();
        let shapes = levels.iter().map(Tensor::dims4).collect::<Result<Vec<_>>>()?;
        let mut places: Vec<Vec<Place>> = vec![Vec::new(); levels.len()];
        for (order, &(image, anchor)) in anchors.iter().enumerate() {
            let mut rest = anchor;
            let level = shapes.iter().position(|&(_, _, h, w)| {
                let inside = rest < h * w * ratios;
                rest -= if inside { 0 } else { h * w * ratios };
                inside
            });
            let Some(level) = level else { bail!("there is no anchor {anchor}") };
            let (position, ratio) = (rest / ratios, rest % ratios);
            places[level].push(Place { order, image, position, ratio });
        }
        let (mut logits, mut deltas, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for (level, places) in levels.iter().zip(&places).filter(|(_, places)| !places.is_empty()) {
            let hidden = self.hidden_at(level, places)?;
            let own = |projection: &Projection, width: usize| -> Result<Tensor> {
                let weight = projection.weight.flatten_from(1)?;
                let all = ops::linear(&hidden, &weight, Some(&projection.bias))?;
                let row = |(i, place): (usize, &Place)| (i * ratios + place.ratio) as u32;
                let rows: Vec<u32> = places.iter().enumerate().map(row).collect();
                let rows = Tensor::from_vec(rows, places.len(), level.device())?;
                all.reshape(((), width))?.index_select(&rows, 0)
            };
            logits.push(own(&self.cls_logits, 1)?);
            deltas.push(own(&self.bbox_pred, 4)?);
            orders.extend(places.iter().map(|place| place.order));
        }
        // Back from the levels' order to that of `anchors`.
        let mut back = vec![0u32; orders.len()];
        orders.iter().enumerate().for_each(|(at, &order)| back[order] = at as u32);
        let back = Tensor::from_vec(back, orders.len(), levels[0].device())?;
        let logits = Tensor::cat(&logits, 0)?.index_select(&back, 0)?.squeeze(1)?;
        Ok((logits, Tensor::cat(&deltas, 0)?.index_select(&back, 0)?))
    }

    /// `[N, C]`: what the convolutions give at the places of one level. Every convolution is one product over rows of 3 × 3
    /// pixels; the squares around the places shrink by a pixel with each.
    fn hidden_at(&self, level: &Tensor, places: &[Place]) -> Result<Tensor> {
        let (_, channels, height, width) = level.dims4()?;
        let area = height * width;
        // The pixel at an offset from a place, and whether it lies on the map.
        let pixel = |place: &Place, (y, x): (isize, isize)| {
            let (y, x) =
                ((place.position / width) as isize + y, (place.position % width) as isize + x);
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
            inside.then(|| place.image * area + y as usize * width + x as usize)
        };
        let square = |radius: usize| {
            let side = -(radius as isize)..=radius as isize;
            side.clone().flat_map(move |y| side.clone().map(move |x| (y, x)))
        };
        // 1 on the map, 0 beside it: zeros are what a convolution's padding is.
        let mask = |radius: usize| -> Result<Tensor> {
            let inside = places.iter().flat_map(|place| {
                square(radius).map(|offset| if pixel(place, offset).is_some() { 1f32 } else { 0.0 })
            });
            let inside: Vec<f32> = inside.collect();
            let count = inside.len();
            Tensor::from_vec(inside, (count, 1), level.device())?.to_dtype(level.dtype())
        };
        let radius = self.conv.len();
        let seen = places.iter().flat_map(|place| {
            square(radius).map(|offset| pixel(place, offset).unwrap_or(0) as u32)
        });
        let seen: Vec<u32> = seen.collect();
        let count = seen.len();
        let rows = level.permute((0, 2, 3, 1))?.contiguous()?.reshape(((), channels))?;
        let mut x = rows.index_select(&Tensor::from_vec(seen, count, level.device())?, 0)?;
        for (i, conv) in self.conv.iter().enumerate() {
            let radius = radius - i;
            x = x.broadcast_mul(&mask(radius)?)?;
            let side = 2 * radius + 1;
            let taps: Vec<u32> = (0..places.len() * side * side)
                .step_by(side * side)
                .flat_map(|first| {
                    square(radius - 1).flat_map(move |(y, x)| {
                        square(1).map(move |(dy, dx)| {
                            let (y, x) = (y + dy + radius as isize, x + dx + radius as isize);
                            (first + y as usize * side + x as usize) as u32
                        })
                    })
                })
                .collect();
            let count = taps.len();
            let columns = x.index_select(&Tensor::from_vec(taps, count, level.device())?, 0)?;
            x = conv.forward_rows(&columns.reshape((count / 9, ()))?)?;
        }
        Ok(x)
    }
}

/// An anchor of one level.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Which of the wanted anchors it is.
    order: usize,
    image: usize,
    /// Row by row.
    position: usize,
    ratio: usize,
}

/// The anchors of one image that are trained on, numbered through all levels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnchorTargets {
    /// With the deltas that lead to their objects.
    pub positives: Vec<(usize, [f32; 4])>,
    /// Background.
    pub negatives: Vec<usize>,
}

/// Matches and samples the anchors of one image.
pub fn anchor_targets(
    config: &RpnConfig,
    anchors: &[[f32; 4]],
    objects: &Instances,
    (ctx, sample_number): (&StepContext, u64),
) -> AnchorTargets {
    let mut found = Matcher::anchors(config.thresholds).assign(&objects.boxes, anchors);
    ignore_crowds(&objects.crowds, anchors, &mut found.labels);
    let mut stream = ctx.rng.stream(Purpose::RoiSampling, sample_number, STREAM);
    let chosen = sample(&found.labels, config.sampled, config.positive_fraction, &mut stream);
    debug_assert!(chosen.positives.iter().all(|&i| found.labels[i] == Label::Positive));
    let target =
        |i: usize| (i, BoxCoder::PLAIN.encode(anchors[i], objects.boxes[found.matched[i]]));
    AnchorTargets {
        positives: chosen.positives.into_iter().map(target).collect(),
        negatives: chosen.negatives,
    }
}

/// `rpn.objectness`, the binary cross-entropy over the sampled anchors, and `rpn.box`, smooth L1 of the deltas of the
/// positives; both are divided by the number of sampled anchors.
///
/// # Errors
/// If an anchor is not there.
pub fn losses(
    head: &RpnHead,
    levels: &[Tensor],
    targets: &[AnchorTargets],
    beta: f64,
) -> Result<[Term; 2]> {
    let (mut positives, mut negatives, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    for (image, target) in targets.iter().enumerate() {
        positives.extend(target.positives.iter().map(|(anchor, _)| (image, *anchor)));
        wanted.extend(target.positives.iter().flat_map(|(_, deltas)| *deltas));
        negatives.extend(target.negatives.iter().map(|&anchor| (image, anchor)));
    }
    let (first, sampled) = (positives.len(), positives.len() + negatives.len());
    let chosen: Vec<(usize, usize)> = positives.into_iter().chain(negatives).collect();
    let term = |name, sum| Term { name, weight: 1.0, sum, count: sampled as f64 };
    let (dtype, device) = (levels[0].dtype(), levels[0].device());
    let zero = || Tensor::zeros((), dtype, device);
    if sampled == 0 {
        return Ok([term("rpn.objectness", zero()?), term("rpn.box", zero()?)]);
    }
    let (scores, deltas) = head.at(levels, &chosen)?;
    let truth: Vec<f32> = (0..sampled).map(|i| if i < first { 1.0 } else { 0.0 }).collect();
    let truth = Tensor::from_vec(truth, sampled, device)?.to_dtype(dtype)?;
    let objectness = ops::bce_with_logits(&scores, &truth)?.sum_all()?;
    let boxes = if first == 0 {
        zero()?
    } else {
        let wanted = Tensor::from_vec(wanted, (first, 4), device)?.to_dtype(dtype)?;
        ops::smooth_l1(&(deltas.narrow(0, 0, first)? - wanted)?, beta)?.sum_all()?
    };
    Ok([term("rpn.objectness", objectness), term("rpn.box", boxes)])
}

impl RpnOutput {
    /// The proposals of every image; `sizes` are the images' heights and widths. No gradient.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn proposals(
        &self,
        anchors: &[Vec<[f32; 4]>],
        sizes: &[(usize, usize)],
        options: &ProposalOptions,
    ) -> Result<Vec<ProposalSet>> {
        let host =
            |levels: &[Tensor]| -> Result<Vec<Vec<f32>>> { levels.iter().map(on_host).collect() };
        let (logits, deltas) = (host(&self.logits)?, host(&self.deltas)?);
        let level = |l: usize, image: usize, size: (usize, usize)| {
            let count = anchors[l].len();
            let (deltas, _) = deltas[l][4 * image * count..][..4 * count].as_chunks::<4>();
            Level {
                logits: &logits[l][image * count..][..count],
                deltas,
                anchors: &anchors[l],
                size,
            }
        };
        let images = sizes.iter().enumerate().map(|(image, &size)| {
            (0..anchors.len()).map(|l| level(l, image, size)).collect::<Vec<_>>()
        });
        let Some(first) = self.logits.first() else { bail!("there are no levels to propose from") };
        propose(&images.collect::<Vec<_>>(), options, first.device())
    }
}

/// All values of a tensor.
pub(super) fn on_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.detach().to_dtype(candle_core::DType::F32)?.flatten_all()?;
    tensor.to_device(&Device::Cpu)?.to_vec1()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};
    use rescatter::ops::gradcheck::{normal, relative_difference};
    use rescatter::params::{ParamStore, Role};

    use super::*;

    /// Every anchor of two levels, those at the borders included, in a mixed order.
    #[test]
    fn single_anchors_are_those_of_the_whole_maps() -> Result<()> {
        for convs in [1, 2, 3] {
            let store = ParamStore::new(&Device::Cpu, DType::F32, 4);
            let head = RpnHead::new(6, 2, convs, &store.root())?;
            for (i, (name, var)) in store.with_role(Role::Trainable).into_iter().enumerate() {
                store.set(&name, &(normal(var.dims(), i as u64)? * 0.3)?)?;
            }
            let maps = [normal(&[2, 6, 4, 5], 1)?, normal(&[2, 6, 1, 2], 2)?];
            let vars = maps.iter().map(|map| Var::from_tensor(&map.to_dtype(DType::F32)?));
            let vars = vars.collect::<Result<Vec<_>>>()?;
            let levels: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let count = 2 * (4 * 5 + 2);
            let chosen: Vec<(usize, usize)> =
                (0..2 * count).map(|i| (i % 2, (i * 7 + i / 11) % count)).collect();
            let (logits, deltas) = head.at(&levels, &chosen)?;

            let whole = head.forward(&levels)?;
            let rows: Vec<u32> =
                chosen.iter().map(|&(image, anchor)| (image * count + anchor) as u32).collect();
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let all = Tensor::cat(&whole.logits, 1)?.flatten_all()?.index_select(&rows, 0)?;
            let all_deltas = Tensor::cat(&whole.deltas, 1)?.reshape(((), 4))?;
            let all_deltas = all_deltas.index_select(&rows, 0)?;
            assert!(relative_difference(&logits, &all)? < 1e-5);
            assert!(relative_difference(&deltas, &all_deltas)? < 1e-5);

            let loss = |logits: &Tensor, deltas: &Tensor| -> Result<Tensor> {
                logits.sqr()?.sum_all()? + (deltas * 0.7)?.exp()?.sum_all()?
            };
            let (single, dense) =
                (loss(&logits, &deltas)?.backward()?, loss(&all, &all_deltas)?.backward()?);
            let parameters = store.with_role(Role::Trainable).into_iter().map(|(_, var)| var);
            for var in parameters.chain(vars) {
                let (a, b) = (single.get(&var).unwrap(), dense.get(&var).unwrap());
                assert!(relative_difference(a, b)? < 1e-5, "{convs} convolutions");
            }
        }
        Ok(())
    }
}
