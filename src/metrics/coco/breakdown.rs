//! TIDE's breakdown of errors (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
//! arXiv 2008.08115): ΔAP is how much AP at IoU 0.5 would rise if errors of one kind alone were repaired.

use serde::Serialize;

use super::Evaluated;
use crate::{Error, Result};

/// IoU from which a detection is right, \[TIDE\] t_f.
const FOREGROUND: f64 = 0.5;
/// IoU up to which it is on background, \[TIDE\] t_b.
const BACKGROUND: f64 = 0.1;

/// \[TIDE\] §2.2: the kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The right place, but another class.
    Classification,
    /// The right class, but IoU between 0.1 and 0.5.
    Localisation,
    /// Another class and IoU between 0.1 and 0.5.
    Both,
    /// A better detection has the object already.
    Duplicate,
    /// IoU below 0.1 with every object.
    Background,
    /// An object that no detection was meant for.
    Missed,
}

impl ErrorKind {
    /// All, in the paper's order, with the names of `hotcoco`.
    const ALL: [(Self, &str); 6] = [
        (Self::Classification, "Cls"),
        (Self::Localisation, "Loc"),
        (Self::Both, "Both"),
        (Self::Duplicate, "Dupe"),
        (Self::Background, "Bkg"),
        (Self::Missed, "Miss"),
    ];
}

/// What AP at IoU 0.5 is lost to. All values are fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breakdown {
    /// AP at IoU 0.5 as it is.
    pub ap50: f64,
    /// Per kind of error.
    pub errors: Vec<ErrorShare>,
    /// ΔAP if no detection were wrong.
    pub false_positives: f64,
    /// ΔAP if no object were missed.
    pub false_negatives: f64,
}

/// One kind of error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorShare {
    /// Which.
    pub kind: ErrorKind,
    /// What repairing it would bring.
    pub delta_ap: f64,
    /// How many there are.
    pub count: u64,
}

impl Evaluated {
    /// The breakdown of the errors.
    ///
    /// # Errors
    /// If the evaluation lacks what it needs, which would be a fault of its own.
    pub fn breakdown(&self) -> Result<Breakdown> {
        let found = self.evaluation.tide_errors(FOREGROUND, BACKGROUND).map_err(Error::usage)?;
        let delta = |name: &str| found.delta_ap.get(name).copied().unwrap_or(0.0);
        let errors = ErrorKind::ALL.map(|(kind, name)| ErrorShare {
            kind,
            delta_ap: delta(name),
            count: found.counts.get(name).copied().unwrap_or(0),
        });
        Ok(Breakdown {
            ap50: found.ap_base,
            errors: errors.to_vec(),
            false_positives: delta("FP"),
            false_negatives: delta("FN"),
        })
    }
}
