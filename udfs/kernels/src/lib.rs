//! Kernels that quantize slices of model weights, restore them, and measure what was lost.
//!
//! Slices in, slices out: no Arrow, no DataFusion, no allocation beyond the result. Weights are read straight from their
//! stored bytes ([`Weights`]), little-endian and at any alignment. Scalar code is the specification; AVX2, AVX-512 and
//! NEON are chosen at run time ([`Isa`]) and give the same bytes, error sums included.
//!
//! ```
//! use arrow_quant_kernels::{Bits, Dtype, GroupSize, Isa, Method, Scheme, Settings, Weights, dequantize, quantize};
//!
//! let bytes: Vec<u8> = (0..256).flat_map(|i| (i as f32 * 0.1).sin().to_le_bytes()).collect();
//! let weights = Weights::new(Dtype::F32, &bytes, 128)?; // two rows
//! let settings = Settings {
//!     bits: Bits::Four,
//!     group_size: GroupSize::try_from(64)?,
//!     scheme: Scheme::Affine,
//!     method: Method::Mse,
//! };
//! let isa = Isa::active()?;
//! let quantized = quantize(isa, weights, settings, None)?;
//! assert_eq!(quantized.codes.len(), 128); // two codes a byte
//! assert!(quantized.errors.sqnr_db() > 20.0);
//! let restored: Vec<f32> = dequantize(isa, &quantized.as_ref())?;
//! assert_eq!(restored.len(), 256);
//! # Ok::<(), arrow_quant_kernels::KernelError>(())
//! ```
//!
//! # Encodings
//!
//! How weights are stored is a value, [`Encoding`]: its name and the sizes of its blocks, for whatever plans, lists or
//! checks stored weights. [`Weights`] are a view of stored weights in the encodings that the kernels read: floats, FP8
//! elements with the [`Scales`] of their tensor, and ggml's [`BlockType`]s. Floats are loaded where they are; other encodings
//! are decoded to F32 first, by [`quantize`] one block of 64 Ki weights at a time, and give the same results as F32 weights of
//! those values. Grouped integers, which [`quantize`] makes, are a [`QuantizedRef`], which [`dequantize`] restores.
//!
//! # What is defined for odd input
//!
//! | input | result |
//! |---|---|
//! | NaN, infinity | [`KernelError::NotFinite`] with the index, nothing else |
//! | a weight of 2¹²⁵ or more in magnitude | [`KernelError::Range`] |
//! | no elements | no groups, empty buffers, sums of zero |
//! | a group of zeros | scale 0, minimum 0, codes 0: exact |
//! | a constant group | `affine`: scale 0, minimum the constant: exact |
//! | subnormals | as any number; a scale below 2⁻¹²⁶ becomes 0, and the group its value nearest to 0 |
//! | a scale or minimum that f16 cannot hold | f32 parameters for the whole slice ([`ParameterDtype`]) |
//! | rounding | to nearest, ties to even, everywhere |

// A variant that is added must be answered for wherever a variant decides (see `types`).
#![deny(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

mod assign;
mod batch;
mod block_values;
mod blocks;
mod compare;
mod dequantize;
mod encoding;
mod error;
mod feedback;
mod grid;
mod isa;
mod pieces;
mod quantize;
mod scale;
mod search;
mod simd;
mod stats;
mod stretch;
mod types;
mod weighted_sum;
mod weights;

pub use blocks::{Blocks, Fill, quantize_blocks, quantize_blocks_while};
pub use compare::{PairSums, cosine_similarity, pair_sums, product_sums};
pub use dequantize::{dequantize, dequantize_while, to_f32, to_f32_into, to_f32_while};
pub use encoding::{BlockType, Encoding, Fp8, Grouping};
pub use error::{KernelError, Result};
pub use feedback::{Factor, MomentBlock, feed_back, feed_back_blocks};
pub use isa::Isa;
pub use quantize::{Quantized, QuantizedRef, par_quantize, quantize, quantize_while};
pub use scale::scale_channels;
pub use stats::{Stats, stats};
pub use types::{Bits, Dtype, GroupSize, Method, ParameterDtype, Scheme, Settings, group_count};
pub use weighted_sum::weighted_sum;
pub use weights::{Scales, Weights};
