//! `rescatter weights merge`.

use rescatter::Result;
use rescatter::engine::checkpoint::export;
use rescatter_heads::Trained;
use rescatter_heads::merge::{TOLERANCE, merged};

use super::export::{Args, deployed, known};

pub(super) fn run(args: &Args) -> Result<()> {
    let which = args.checkpoint.into();
    let trained = Trained::open(&args.run, which, &[])?.calibrated()?;
    let merged = merged(&trained)?;
    let meta = deployed(&merged.config, &merged.model, known(&args.run, which)?)?;
    export(&args.output, merged.model.params(), &meta)?;
    println!(
        "{}: {} folded into the weights; largest difference of the features {:.1e} of the largest value (at most {TOLERANCE:.0e})",
        args.output.display(),
        merged.folded.join(", "),
        merged.difference,
    );
    Ok(())
}
