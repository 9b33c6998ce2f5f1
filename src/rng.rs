//! One counter-based generator for every random decision: Philox 4×32-10 (Salmon et al., "Parallel Random Numbers: As
//! Easy as 1, 2, 3", SC 2011).
//!
//! A draw depends only on (seed, purpose, sample number, layer), never on threads, workers or ranks, and no state is
//! carried from step to step; so a resumed run draws what the uninterrupted one would have drawn.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a stream of random numbers is for: different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// Order of the samples within an epoch.
    Shuffle = 1,
    /// Augmentation of one sample.
    Augment = 2,
    /// Noise on the dispatcher's logits.
    Gumbel = 3,
    /// Dropout inside adapters and heads.
    Dropout = 4,
    /// Stochastic depth.
    DropPath = 5,
    /// Sampling of anchors and regions.
    RoiSampling = 6,
    /// Initial values of parameters.
    Init = 7,
    /// Synthetic sample sets.
    Synthetic = 8,
    /// A random dispatcher (the ablation of \[DyT\] Table 7).
    RandomDispatch = 9,
    /// Mixing the images of a batch.
    Mix = 16,
}

/// The seed of a run; hands out independent [`Stream`]s.
#[derive(Debug, Clone, Copy)]
pub struct Rng {
    seed: u64,
}

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The stream of `purpose` for one sample (its number in the whole run) and one layer.
    pub fn stream(&self, purpose: Purpose, sample: u64, layer: u16) -> Stream {
        Stream {
            key: [self.seed as u32, (self.seed >> 32) as u32],
            counter: [
                0,
                u32::from(purpose as u16) << 16 | u32::from(layer),
                sample as u32,
                (sample >> 32) as u32,
            ],
            block: [0; 4],
            used: 4,
        }
    }
}

/// Random numbers of one purpose, sample and layer.
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in 0..n; `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        // Multiply-shift: the bias is below 2⁻³² for every n that occurs here.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Normal(0, std) cut at two standard deviations, as `timm.layers.trunc_normal_` does for ViTs.
    pub fn truncated_normal(&mut self, std: f64) -> f64 {
        loop {
            let value = self.normal();
            if value.abs() <= 2.0 {
                return value * std;
            }
        }
    }

    /// G₁ − G₂ with G ~ Gumbel(0, 1), which is a standard logistic draw (\[DyT\] Eq. 4).
    pub fn gumbel_difference(&mut self) -> f64 {
        let u = self.uniform().clamp(1e-12, 1.0 - 1e-12);
        u.ln() - (-u).ln_1p()
    }

    /// Beta(a, b), as a quotient of gamma draws.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        // Both may underflow for tiny shapes, where either end is as likely as its shape is large.
        if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(self.chance(a / (a + b)))) }
    }

    /// Gamma of this shape and scale 1 (Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000).
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * (1.0 - self.uniform()).powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of Random123's kat_vectors for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn streams_of_other_samples_purposes_and_layers_differ() {
        let rng = Rng::new(7);
        let first = |purpose, sample, layer| rng.stream(purpose, sample, layer).next_u64();
        let base = first(Purpose::Gumbel, 3, 1);
        assert_eq!(base, first(Purpose::Gumbel, 3, 1));
        assert_ne!(base, first(Purpose::Gumbel, 4, 1));
        assert_ne!(base, first(Purpose::Gumbel, 3, 2));
        assert_ne!(base, first(Purpose::Dropout, 3, 1));
    }

    #[test]
    fn moments_are_right() {
        let mut stream = Rng::new(1).stream(Purpose::Init, 0, 0);
        let n = 40_000;
        let draws: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let var = draws.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "mean {mean}, variance {var}");
        for (a, b) in [(0.2, 0.2), (1.0, 1.0), (2.0, 5.0)] {
            let draws: Vec<f64> = (0..n).map(|_| stream.beta(a, b)).collect();
            let mean = draws.iter().sum::<f64>() / n as f64;
            let var = draws.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let (m, v) = (a / (a + b), a * b / ((a + b) * (a + b) * (a + b + 1.0)));
            assert!((mean - m).abs() < 0.01 && (var - v).abs() < 0.01, "{mean} {var}: {m} {v}");
        }
        // A standard logistic variable has variance π²/3.
        let logistic = (0..n).map(|_| stream.gumbel_difference().powi(2)).sum::<f64>() / n as f64;
        assert!(
            (logistic - std::f64::consts::PI.powi(2) / 3.0).abs() < 0.12,
            "variance {logistic}"
        );
    }
}
