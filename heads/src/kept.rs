//! The share of tokens that was worked on, over many images.

use candle_core::Result;
use rescatter::config::Variant;
use rescatter::dispatch::KeptStats;
use serde::{Deserialize, Serialize};

/// Counts tokens over passes of any size; a token of a large image weighs as much as one of a small image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Per dispatcher.
    active: Vec<f64>,
    /// Per dispatcher.
    tokens: Vec<f64>,
}

impl Kept {
    /// Adds the decisions of one pass.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn count(&mut self, stats: &KeptStats) -> Result<()> {
        let tokens: Vec<f64> =
            stats.layers.iter().map(|layer| layer.mask.elem_count() as f64).collect();
        let active =
            stats.per_layer()?.iter().zip(&tokens).map(|(share, tokens)| share * tokens).collect();
        self.add(&Self { active, tokens });
        Ok(())
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        let layers = self.active.len().max(other.active.len());
        for (mine, theirs) in [(&mut self.active, &other.active), (&mut self.tokens, &other.tokens)]
        {
            mine.resize(layers, 0.0);
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }

    /// Share per dispatcher, in the order of the blocks; empty without dispatchers.
    pub fn per_layer(&self) -> Vec<f64> {
        self.active
            .iter()
            .zip(&self.tokens)
            .map(|(active, tokens)| active / tokens.max(1.0))
            .collect()
    }

    /// Share over all dispatchers; 1 without any.
    pub fn overall(&self) -> f64 {
        if self.active.is_empty() {
            1.0
        } else {
            self.active.iter().sum::<f64>() / self.tokens.iter().sum::<f64>().max(1.0)
        }
    }
}

/// Shares per dispatcher, in their order, as lists over the blocks: one, or one per site where blocks have several; each
/// with what to call it.
pub fn per_site(variant: Variant, shares: &[f64]) -> Vec<(String, Vec<f64>)> {
    let sites = variant.dispatched();
    let name = |at: usize| match sites {
        [_] => "kept per layer".to_string(),
        _ => format!("kept per layer, {}", sites[at].name()),
    };
    let list = |at: usize| shares.iter().copied().skip(at).step_by(sites.len()).collect();
    (0..sites.len()).map(|at| (name(at), list(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_dispatchers_a_block_make_two_lists() {
        let list = |name: &str, shares: &[f64]| (format!("kept per layer{name}"), shares.to_vec());
        let shares = [0.1, 0.2, 0.3, 0.4];
        assert_eq!(per_site(Variant::Layer, &shares), [list("", &shares)]);
        let (attn, mlp) = (list(", attn", &[0.1, 0.3]), list(", mlp", &[0.2, 0.4]));
        assert_eq!(per_site(Variant::AttentionMlp, &shares), [attn, mlp]);
        assert_eq!(per_site(Variant::None, &[]), []);
    }

    #[test]
    fn shares_are_weighted_by_tokens() {
        // 2 layers; an image of 10 tokens and one of 30.
        let mut kept = Kept { active: vec![5.0, 10.0], tokens: vec![10.0, 10.0] };
        kept.add(&Kept { active: vec![15.0, 0.0], tokens: vec![30.0, 30.0] });
        assert_eq!(kept.per_layer(), [0.5, 0.25]);
        assert_eq!(kept.overall(), 0.375);
        assert_eq!(Kept::default().overall(), 1.0);
    }
}
