//! The levels of quantized weights, as they are stored: a scale and a base for each run of weights that shares them.

use half::f16;

use crate::block_values::restore_all;
use crate::blocks::{Blocks, put_codes};
use crate::quantize::Quantized;
use crate::simd::LANES;
use crate::types::{ParameterDtype, Scheme};
use crate::{BlockType, Isa};

/// What codes of a block type stand for, as multiples of a scale.
#[derive(Clone, Copy)]
pub(super) enum Level {
    /// The integers from 0 to this.
    Even(u8),
    /// The codebook of `iq4_nl`.
    Iq4,
    /// Floats of four bits.
    E2m1,
}

impl Level {
    /// `None` for types that no search fills.
    pub(super) fn of(block_type: BlockType) -> Option<Self> {
        match block_type {
            // From -127 to 127.
            BlockType::Q8_0 => Some(Self::Even(254)),
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => {
                Some(Self::Even(block_type.bits().max_code()))
            }
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                Some(Self::Even(block_type.bits().max_code()))
            }
            BlockType::Iq4Nl | BlockType::Iq4Xs => Some(Self::Iq4),
            BlockType::Mxfp4 | BlockType::Nvfp4 => Some(Self::E2m1),
            BlockType::Q2_0 | BlockType::Tq1_0 | BlockType::Tq2_0 => None,
        }
    }

    /// The codes of the lowest level and of the greatest, and how many scales these are apart; and whether the base is the
    /// lowest level, rather than zero.
    fn extremes(self) -> ([u8; 2], f32, bool) {
        match self {
            Self::Even(top) => ([0, top], top.into(), true),
            Self::Iq4 => ([0, 15], 113.0 + 127.0, false),
            Self::E2m1 => ([15, 7], 12.0, false),
        }
    }
}

/// Scales and bases of the runs of all rows. A level is a multiple of the scale, and the base added.
pub(super) struct Grids {
    run: usize,
    runs: usize,
    scales: Vec<f32>,
    bases: Vec<f32>,
}

impl Grids {
    /// For rows of so many channels in runs of a length, of which the last may be short.
    pub(super) fn new(channels: usize, run: usize) -> Self {
        Self { run, runs: channels.div_ceil(run), scales: Vec::new(), bases: Vec::new() }
    }

    /// Weights of a run.
    pub(super) fn run(&self) -> usize {
        self.run
    }

    /// Scales and bases of run `k` of sixteen rows.
    pub(super) fn at(&self, rows: &[usize; LANES], k: usize) -> ([f32; LANES], [f32; LANES]) {
        (rows.map(|row| self.scales[row * self.runs + k]), rows.map(|row| self.bases[row * self.runs + k]))
    }

    /// Those of the groups of a slice.
    pub(super) fn add_groups(&mut self, quantized: &Quantized) {
        let parameters = |bytes: &[u8]| -> Vec<f32> {
            match quantized.parameter_dtype {
                ParameterDtype::F16 => {
                    bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
                }
                ParameterDtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            }
        };
        let scales = parameters(&quantized.scales);
        match quantized.settings.scheme {
            Scheme::Affine => self.bases.extend(parameters(&quantized.minima)),
            Scheme::Asymmetric => {
                let zeros = quantized.zero_points.iter().map(|&zero| f32::from(zero));
                self.bases.extend(zeros.zip(&scales).map(|(zero, scale)| -zero * scale));
            }
            Scheme::Symmetric => {
                let half = (f32::from(quantized.settings.bits.max_code()) + 1.0) / 2.0;
                self.bases.extend(scales.iter().map(|scale| -half * scale));
            }
        }
        self.scales.extend(scales);
    }

    /// Those of the runs of blocks: what their lowest and greatest code stands for tells scale and base.
    pub(super) fn add_blocks(&mut self, isa: Isa, blocks: &Blocks, level: Level) {
        let (extremes, apart, has_base) = level.extremes();
        let [lowest, greatest] = extremes.map(|code| {
            let mut bytes = blocks.bytes.clone();
            put_codes(isa, blocks.block_type, &vec![code; blocks.length], &mut bytes);
            let mut restored = vec![0.0f32; blocks.length];
            restore_all(isa, blocks.block_type, &bytes, &mut restored);
            restored
        });
        for (lowest, greatest) in lowest.iter().zip(&greatest).step_by(self.run) {
            self.scales.push((greatest - lowest) / apart);
            self.bases.push(if has_base { *lowest } else { 0.0 });
        }
    }
}
