//! Leaving out what a data set never activates (\[DyT\] Fig. 5).

use rescatter::backbone::Dims;
use rescatter::{Error, Result};

use crate::{Config, Trained};

/// What one dispatcher's part of a block is worth to the images that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Patches pass it.
    Patches,
    /// Class, register and prompt tokens alone pass it, but what they become is read: by later blocks or the head.
    Prefix,
    /// No output depends on it.
    None,
}

/// The use of every dispatcher's part of a block, where `kept` are the shares of the patches that pass it; a share of up to
/// `tolerance` counts as none. Class, register and prompt tokens always pass: without patches, they make a difference in all blocks
/// but the last, and there if the head reads them.
///
/// # Errors
/// If the sizes in `config` do not fit together.
pub fn uses(config: &Config, kept: &[f64], tolerance: f64) -> Result<Vec<Use>> {
    let dims = Dims::new(&config.backbone)?;
    let sites = config.dispatch.variant.dispatched().len().max(1);
    let prefix = dims.prefix() + config.tuning.prompts();
    let prefix_is_read =
        |block: usize| prefix > 0 && (block + 1 < dims.depth || config.head.reads_prefix());
    let usage = |(number, share): (usize, &f64)| match (*share <= tolerance, number / sites) {
        (false, _) => Use::Patches,
        (true, block) if prefix_is_read(block) => Use::Prefix,
        (true, _) => Use::None,
    };
    Ok(kept.iter().enumerate().map(usage).collect())
}

impl Trained {
    /// The same model without the parts of blocks of the dispatchers `numbers`: nobody passes them.
    ///
    /// # Errors
    /// If there are no such dispatchers.
    pub fn pruned(&self, numbers: &[usize]) -> Result<Self> {
        let mut config = self.config.clone();
        config.dispatch.pruned.extend(numbers);
        config.dispatch.pruned.sort_unstable();
        config.dispatch.pruned.dedup();
        let count = self.model.backbone().dispatchers();
        if config.dispatch.pruned.iter().any(|&number| number >= count) {
            let reason = format!("{numbers:?} are not all among the {count} learned dispatchers");
            return Err(Error::usage(reason));
        }
        self.rebuilt(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_tokens_make_a_difference_until_nothing_reads_them() {
        let config = |name: &str, overrides: &[&str]| -> Config {
            let path = format!("{}/../configs/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
            rescatter::config::load::load(path.as_ref(), &overrides).unwrap()
        };
        let mut kept = [0.5; 12];
        (kept[3], kept[5], kept[11]) = (0.0, 0.01, 0.0);
        let found = |config: &Config, tolerance| {
            let uses = uses(config, &kept, tolerance).unwrap();
            [uses[2], uses[3], uses[5], uses[11]]
        };
        let segments = config("ade20k_upernet_vit_b16_dyt", &[]);
        assert_eq!(found(&segments, 0.0), [Use::Patches, Use::Prefix, Use::Patches, Use::None]);
        assert_eq!(found(&segments, 0.01), [Use::Patches, Use::Prefix, Use::Prefix, Use::None]);
        let patches = config("ade20k_upernet_vit_b16_dyt", &["backbone.cls_token=false"]);
        assert_eq!(found(&patches, 0.0), [Use::Patches, Use::None, Use::Patches, Use::None]);
        let prompts = ["backbone.cls_token=false", "tuning.vpt={tokens: 2}"];
        let prompted = config("ade20k_upernet_vit_b16_dyt", &prompts);
        assert_eq!(found(&prompted, 0.0), [Use::Patches, Use::Prefix, Use::Patches, Use::None]);
        let head = ["task=classification", "head={classifier: {pool: cls}}"];
        let classifies = config("ade20k_upernet_vit_b16_dyt", &head);
        assert_eq!(found(&classifies, 0.0)[3], Use::Prefix);
    }
}
