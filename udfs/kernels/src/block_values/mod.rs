//! What ggml's blocks stand for: `decode` says it block by block, and `restore` does it sixteen weights at a time.

pub(crate) mod decode;
pub(crate) mod restore;

pub(crate) use restore::Restored;

use crate::encoding::BlockType;
use crate::isa::Isa;

/// Weights of the longest block.
pub(crate) const MOST: usize = 256;

/// Twice the values of a float of two bits of exponent and one of mantissa, by code: the fourth bit is the sign.
pub(crate) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The levels of `iq4_nl` and `iq4_xs`.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The unsigned float of four bits of exponent and three of mantissa that scales of `nvfp4` are; 0 for the code of NaN.
pub(crate) fn ue4m3(byte: u8) -> f32 {
    match byte & 0x7f {
        0x7f => 0.0,
        magnitude => crate::encoding::e4m3(magnitude),
    }
}

/// Scale and minimum `j` of the eight, of six bits each, in the twelve bytes of `q4_k` and `q5_k`.
pub(crate) fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// The sixteen signed scales of `q3_k`, stored with 32 added.
pub(crate) fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Restores whole blocks.
pub(crate) fn restore_all<T: Restored>(isa: Isa, block_type: BlockType, bytes: &[u8], out: &mut [T]) {
    isa.run(restore::Restore { block_type, bytes, out });
}
