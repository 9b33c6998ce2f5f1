//! The nineteen tasks of VTAB-1K (Zhai et al., arXiv 1910.04867).

use serde::{Deserialize, Serialize};

/// A task, by the name of its folder in the published lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of data sets")]
pub enum VtabTask {
    Cifar,
    Caltech101,
    Dtd,
    OxfordFlowers102,
    OxfordIiitPet,
    Svhn,
    Sun397,
    PatchCamelyon,
    Eurosat,
    Resisc45,
    DiabeticRetinopathy,
    ClevrCount,
    ClevrDist,
    Dmlab,
    Kitti,
    DspritesLoc,
    DspritesOri,
    SmallnorbAzi,
    SmallnorbEle,
}

/// The three groups whose means the papers report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum VtabGroup {
    /// Photographs of things.
    Natural,
    /// Pictures of special instruments.
    Specialized,
    /// Counting, distances, orientations.
    Structured,
}

impl VtabTask {
    /// In the order of the papers' tables.
    pub const ALL: [Self; 19] = [
        Self::Cifar,
        Self::Caltech101,
        Self::Dtd,
        Self::OxfordFlowers102,
        Self::OxfordIiitPet,
        Self::Svhn,
        Self::Sun397,
        Self::PatchCamelyon,
        Self::Eurosat,
        Self::Resisc45,
        Self::DiabeticRetinopathy,
        Self::ClevrCount,
        Self::ClevrDist,
        Self::Dmlab,
        Self::Kitti,
        Self::DspritesLoc,
        Self::DspritesOri,
        Self::SmallnorbAzi,
        Self::SmallnorbEle,
    ];

    /// The folder's name, and how many classes there are.
    fn facts(self) -> (&'static str, usize) {
        match self {
            Self::Cifar => ("cifar", 100),
            Self::Caltech101 => ("caltech101", 102),
            Self::Dtd => ("dtd", 47),
            Self::OxfordFlowers102 => ("oxford_flowers102", 102),
            Self::OxfordIiitPet => ("oxford_iiit_pet", 37),
            Self::Svhn => ("svhn", 10),
            Self::Sun397 => ("sun397", 397),
            Self::PatchCamelyon => ("patch_camelyon", 2),
            Self::Eurosat => ("eurosat", 10),
            Self::Resisc45 => ("resisc45", 45),
            Self::DiabeticRetinopathy => ("diabetic_retinopathy", 5),
            Self::ClevrCount => ("clevr_count", 8),
            Self::ClevrDist => ("clevr_dist", 6),
            Self::Dmlab => ("dmlab", 6),
            Self::Kitti => ("kitti", 4),
            Self::DspritesLoc => ("dsprites_loc", 16),
            Self::DspritesOri => ("dsprites_ori", 16),
            Self::SmallnorbAzi => ("smallnorb_azi", 18),
            Self::SmallnorbEle => ("smallnorb_ele", 9),
        }
    }

    /// The name of the task's folder, which is also its name in a config.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// How many classes the task has; a list need not show all of them.
    pub fn classes(self) -> usize {
        self.facts().1
    }

    /// The group whose mean it counts in.
    pub fn group(self) -> VtabGroup {
        match Self::ALL.iter().position(|task| *task == self) {
            Some(0..7) => VtabGroup::Natural,
            Some(7..11) => VtabGroup::Specialized,
            _ => VtabGroup::Structured,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_name_is_its_key_and_the_groups_have_seven_four_and_eight() {
        for task in VtabTask::ALL {
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
        let count = |group| VtabTask::ALL.iter().filter(|task| task.group() == group).count();
        assert_eq!(
            [VtabGroup::Natural, VtabGroup::Specialized, VtabGroup::Structured].map(count),
            [7, 4, 8]
        );
    }
}
