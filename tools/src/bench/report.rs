//! What `rescatter bench` prints.

use std::io::Write;

use anyhow::Result;
use rescatter::config::Variant;
use rescatter::dispatch;
use rescatter_heads::flops;
use rescatter_heads::kept::per_site;
use rescatter_heads::run::Trained;
use serde::Serialize;

use super::clock::{Spent, product_gflops};

/// What was measured of one kind of model.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// Per pass.
    pub(super) backbone: Vec<Spent>,
    /// Per pass.
    pub(super) whole: Vec<Spent>,
    /// Seconds of every block, pass by pass; empty unless they were asked for.
    pub(super) blocks: Vec<Vec<f64>>,
    pub(super) kept: f64,
    pub(super) kept_per_layer: Vec<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
}

/// The dense model beside the skipping one, if the model skips anything.
pub(super) struct Sides {
    pub(super) dense: Side,
    pub(super) skipping: Option<Side>,
}

/// Everything that is printed.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    setting: Setting,
    #[serde(flatten)]
    kept: Option<Kept>,
    #[serde(skip)]
    variant: Variant,
    /// 10⁹ floating-point operations a second of a large product.
    product_gflops: f64,
    backbone: Comparison,
    whole: Comparison,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<BlockTimes>,
}

/// Who works in the skipping model.
#[derive(Serialize)]
struct Kept {
    /// Share of the patch tokens that it works on.
    kept: f64,
    kept_per_layer: Vec<f64>,
}

/// One block of both models; the first with the embedding.
#[derive(Serialize)]
struct BlockTimes {
    dense: Times,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipping: Option<Times>,
}

/// Dense beside skipping.
#[derive(Serialize)]
struct Comparison {
    dense: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipping: Option<Figures>,
    #[serde(skip)]
    time_saved: Option<f64>,
    /// Share of the time that skipping saves over the share of the multiply-adds; 1 is ideal.
    time_saved_over_flops_saved: Option<f64>,
}

/// One line of the table.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    times: Times,
    /// Of all threads together, the median.
    processor_ms: Option<f64>,
    images_per_second: f64,
    /// 10⁹ floating-point operations a second, two for a multiply-add.
    gflops: f64,
    /// Of one image or clip.
    gmacs_nominal: f64,
    /// Of one image or clip.
    gmacs_executed: f64,
    peak_memory_bytes: Option<u64>,
}

impl Report {
    pub(super) fn new(
        trained: &Trained,
        (batch, size): (usize, (usize, usize)),
        sides: Sides,
    ) -> Result<Self> {
        let Sides { dense, skipping } = sides;
        let line = |side: &Side, part: Part, spent: &[Spent]| -> Result<Figures> {
            let gmacs = gmacs(trained, size, &side.kept_per_layer, part)?;
            Ok(Figures::new(batch, spent, gmacs, side.peak_memory_bytes))
        };
        let compare = |part: Part, spent: fn(&Side) -> &[Spent]| -> Result<Comparison> {
            let line = |side: &Side| line(side, part, spent(side));
            Ok(Comparison::new(line(&dense)?, skipping.as_ref().map(line).transpose()?))
        };
        Ok(Self {
            setting: Setting::new(size, batch, dense.whole.len()),
            backbone: compare(Part::Backbone, |side| &side.backbone)?,
            whole: compare(Part::Whole, |side| &side.whole)?,
            blocks: block_times(&dense, skipping.as_ref()),
            kept: skipping
                .map(|side| Kept { kept: side.kept, kept_per_layer: side.kept_per_layer }),
            variant: trained.config.dispatch.variant,
            product_gflops: product_gflops(trained.model.params().device())?,
        })
    }

    pub(super) fn print_table(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        self.setting.print("pass", "passes", &mut out)?;
        writeln!(
            out,
            "{:<21} {:>26} {:>12} {:>9} {:>13} {:>14} {:>8} {:>5} {:>8}",
            "",
            "ms per pass",
            "processor ms",
            "images/s",
            "GMACs nominal",
            "GMACs executed",
            "GFLOP/s",
            "share",
            "peak MiB"
        )?;
        for (name, pair) in [("backbone", &self.backbone), ("whole model", &self.whole)] {
            pair.dense.print(&format!("{name}, dense"), self.product_gflops, &mut out)?;
            if let Some(skipping) = &pair.skipping {
                skipping.print(&format!("{name}, skipping"), self.product_gflops, &mut out)?;
            }
        }
        let peak = self.product_gflops;
        writeln!(out, "\nshare: of {peak:.0} GFLOP/s, which a large product reaches\n")?;
        for (name, pair) in [("backbone", &self.backbone), ("whole model", &self.whole)] {
            if let (Some(saved), Some(ratio)) = (pair.time_saved, pair.time_saved_over_flops_saved)
            {
                let saved = 100.0 * saved;
                writeln!(
                    out,
                    "{name}: {saved:.1} % of the time saved, {ratio:.2} of what the multiply-adds promise"
                )?;
            }
        }
        if let Some(Kept { kept, kept_per_layer }) = &self.kept {
            writeln!(out, "kept: {:.1} % of the patch tokens", 100.0 * kept)?;
            for (what, shares) in per_site(self.variant, kept_per_layer) {
                let layers: Vec<_> =
                    shares.iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
                writeln!(out, "{what}: {}", layers.join(" "))?;
            }
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let name = if i == 0 { "\nembedding, block 0".into() } else { format!("block {i}") };
            write!(out, "{name:<20} {:>26} dense", block.dense)?;
            match &block.skipping {
                Some(skipping) => writeln!(out, " {skipping:>26} skipping")?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }
}

/// Of the seconds of every block, pass by pass.
fn block_times(dense: &Side, skipping: Option<&Side>) -> Vec<BlockTimes> {
    let times = |side: &Side, block: usize| {
        Times::new(&side.blocks.iter().map(|blocks| blocks[block]).collect::<Vec<_>>())
    };
    let count = dense.blocks.first().map_or(0, Vec::len);
    (0..count)
        .map(|i| BlockTimes { dense: times(dense, i), skipping: skipping.map(|s| times(s, i)) })
        .collect()
}

impl Comparison {
    fn new(dense: Figures, skipping: Option<Figures>) -> Self {
        let saved = skipping.as_ref().map(|skipping| {
            let time = 1.0 - skipping.times.median_ms / dense.times.median_ms;
            (time, 1.0 - skipping.gmacs_executed / dense.gmacs_executed)
        });
        let ratio = saved.filter(|(_, flops)| *flops > 0.0).map(|(time, flops)| time / flops);
        let time_saved = saved.map(|(time, _)| time);
        Self { dense, skipping, time_saved, time_saved_over_flops_saved: ratio }
    }
}

/// What was timed, and on what.
#[derive(Serialize)]
pub(super) struct Setting {
    /// Height and width.
    size: (usize, usize),
    batch: usize,
    repeat: usize,
    threads: usize,
    cpu: Vec<&'static str>,
}

impl Setting {
    pub(super) fn new(size: (usize, usize), batch: usize, repeat: usize) -> Self {
        let threads = rayon::current_num_threads();
        Self { size, batch, repeat, threads, cpu: cpu_features() }
    }

    /// The line over a table whose `unit` (in the plural `units`) was timed.
    pub(super) fn print(
        &self,
        unit: &str,
        units: &str,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let ((height, width), cpu) = (self.size, self.cpu.join(" "));
        let Self { batch, repeat, threads, .. } = self;
        writeln!(
            out,
            "{height}×{width} pixels, {batch} per {unit}, {threads} threads, {cpu}; median of {repeat} {units} (fastest – slowest)\n"
        )
    }
}

/// Prints a report as JSON.
pub(super) fn print_json(report: &impl Serialize) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string_pretty(report)?)?;
    Ok(())
}

/// How long something took, in milliseconds.
#[derive(Serialize)]
pub(crate) struct Times {
    pub(crate) median_ms: f64,
    min_ms: f64,
    max_ms: f64,
}

impl Times {
    pub(crate) fn new(seconds: &[f64]) -> Self {
        let mut ms: Vec<f64> = seconds.iter().map(|s| 1e3 * s).collect();
        ms.sort_by(f64::total_cmp);
        let median_ms = (ms[(ms.len() - 1) / 2] + ms[ms.len() / 2]) / 2.0;
        Self { median_ms, min_ms: ms[0], max_ms: ms[ms.len() - 1] }
    }

    pub(super) fn of(spent: &[Spent]) -> Self {
        Self::new(&spent.iter().map(|spent| spent.seconds).collect::<Vec<_>>())
    }

    /// How many are done in a second where one time is that of `count`.
    pub(super) fn per_second(&self, count: usize) -> f64 {
        1e3 * count as f64 / self.median_ms
    }
}

/// The median of what all threads worked; `None` where the system does not say.
pub(super) fn processor_ms(spent: &[Spent]) -> Option<f64> {
    let seconds = spent.iter().map(|spent| spent.processor).collect::<Option<Vec<_>>>()?;
    Some(Times::new(&seconds).median_ms)
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let text = format!("{:.1} ({:.1} – {:.1})", self.median_ms, self.min_ms, self.max_ms);
        f.pad(&text)
    }
}

impl Figures {
    fn new(batch: usize, spent: &[Spent], gmacs: (f64, f64), peak: Option<u64>) -> Self {
        let times = Times::of(spent);
        Self {
            images_per_second: times.per_second(batch),
            gflops: 2e3 * gmacs.1 * batch as f64 / times.median_ms,
            processor_ms: processor_ms(spent),
            times,
            gmacs_nominal: gmacs.0,
            gmacs_executed: gmacs.1,
            peak_memory_bytes: peak,
        }
    }

    fn print(&self, name: &str, peak: f64, out: &mut impl Write) -> std::io::Result<()> {
        let memory = self.peak_memory_bytes.map_or("-".into(), |bytes| format!("{}", bytes >> 20));
        let processor = self.processor_ms.map_or("-".into(), |ms| format!("{ms:.0}"));
        writeln!(
            out,
            "{name:<21} {:>26} {processor:>12} {:>9.2} {:>13.2} {:>14.2} {:>8.0} {:>5.2} {memory:>8}",
            self.times,
            self.images_per_second,
            self.gmacs_nominal,
            self.gmacs_executed,
            self.gflops,
            self.gflops / peak
        )
    }
}

/// What is timed.
#[derive(Debug, Clone, Copy)]
enum Part {
    Backbone,
    Whole,
}

/// 10⁹ multiply-adds of one image, nominal and executed.
fn gmacs(trained: &Trained, size: (usize, usize), kept: &[f64], part: Part) -> Result<(f64, f64)> {
    let config = &trained.config;
    let count = match part {
        Part::Whole => {
            flops::count(config, flops::Pass { size, kept, classes: trained.classes.len() })?
        }
        Part::Backbone => {
            let dims = trained.model.backbone().dims();
            let reads = config.head.reads(dims.depth);
            dispatch::flops::backbone(dims, (&config.dispatch, &config.tuning), &reads, size, kept)
                .repeated(config.data.train.frames())
        }
    };
    Ok((count.nominal_gmacs(), count.executed_gmacs()))
}

/// The instruction sets that decide about the kernels.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known = [(std::env::consts::ARCH, true)];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}
