//! The mixes of llama-quantize: which type each tensor gets, by the names that users know.
//!
//! Source: `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp`, checked against llama-quantize (export-notes).

use arrow_quant_kernels::BlockType;

use super::LanguageModel;
use super::layout::{EMBEDDING, HEAD, block, module};
use crate::gguf::Place;

/// One row a mix: variant, name, the number of its kind of file, and the type of most tensors.
macro_rules! mixes {
    ($($variant:ident = $name:literal, $number:literal, $base:ident;)+) => {
        /// A mix of types. The names are those of llama-quantize, in small letters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the variants are the names of llama-quantize")]
        pub enum Mix { $($variant),+ }

        impl Mix {
            /// Every mix.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name as users type it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The value of `general.file_type`.
            pub const fn file_type(self) -> u32 {
                match self { $(Self::$variant => $number),+ }
            }

            /// The type of most tensors.
            pub const fn base(self) -> BlockType {
                match self { $(Self::$variant => BlockType::$base),+ }
            }
        }
    };
}

mixes! {
    Q3KS = "q3_k_s", 11, Q3K;
    Q3KM = "q3_k_m", 12, Q3K;
    Q3KL = "q3_k_l", 13, Q3K;
    Q4KS = "q4_k_s", 14, Q4K;
    Q4KM = "q4_k_m", 15, Q4K;
    Q5KS = "q5_k_s", 16, Q5K;
    Q5KM = "q5_k_m", 17, Q5K;
}

/// What a tensor is to a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The head, or the embedding where it is the head too.
    Head,
    /// Values of attention, or queries, keys and values in one.
    Value,
    /// Keys of attention.
    Key,
    /// What comes after attention.
    Output,
    /// The second matrix of a feed-forward network.
    Down,
    /// Any other.
    Other,
}

impl Role {
    /// What a tensor of a file is. `is_tied` if the head has no tensor of its own.
    fn of(place: &Place, is_tied: bool) -> Self {
        match (place.name.as_str(), module(&place.name)) {
            (HEAD, _) => Self::Head,
            (EMBEDDING, _) if is_tied => Self::Head,
            (_, "attn_v" | "attn_qkv") => Self::Value,
            (_, "attn_k") => Self::Key,
            (_, "attn_output") => Self::Output,
            (_, "ffn_down" | "ffn_down_exps") => Self::Down,
            _ => Self::Other,
        }
    }
}

impl Mix {
    /// The mix of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mix| mix.name() == name)
    }

    /// The type that a tensor of a model gets.
    pub fn block_type(self, model: &LanguageModel, place: &Place) -> BlockType {
        let at = block(&place.name).unwrap_or(0);
        self.of_role(Role::of(place, model.is_tied()), at, model.blocks, model.experts)
    }

    fn of_role(self, role: Role, at: u32, blocks: u32, experts: Option<u32>) -> BlockType {
        use BlockType::{Q4K, Q5K, Q6K, Q8_0};
        // The first eighth, the last eighth, and every third between.
        let is_more = at < blocks / 8 || at >= 7 * blocks / 8 || (at - blocks / 8) % 3 == 2;
        let has_eight = experts == Some(8);
        match (role, self) {
            (Role::Head, _) => Q6K,
            (Role::Value | Role::Key, _) if has_eight => Q8_0,
            (Role::Output, _) if has_eight => Q5K,
            (Role::Value | Role::Down, Self::Q4KM | Self::Q5KM) if is_more => Q6K,
            (Role::Value, Self::Q4KS) if at < 4 => Q5K,
            (Role::Down, Self::Q4KS) if at < blocks / 8 => Q5K,
            (Role::Value, Self::Q3KM) => {
                if at < 2 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Role::Down, Self::Q3KM) => {
                if at < blocks / 16 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Role::Output, Self::Q3KM) => Q4K,
            (Role::Value | Role::Down | Role::Output, Self::Q3KL) => Q5K,
            (
                Role::Value | Role::Key | Role::Output | Role::Down | Role::Other,
                Self::Q3KS | Self::Q3KM | Self::Q3KL | Self::Q4KS | Self::Q4KM | Self::Q5KS | Self::Q5KM,
            ) => self.base(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks_with(mix: Mix, role: Role, block_type: BlockType, blocks: u32) -> Vec<u32> {
        (0..blocks).filter(|at| mix.of_role(role, *at, blocks, None) == block_type).collect()
    }

    #[test]
    fn mixes_are_those_of_llama_quantize() {
        // 16 blocks: the first two, the last two, and every third from the fifth on.
        assert_eq!(blocks_with(Mix::Q4KM, Role::Down, BlockType::Q6K, 16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(blocks_with(Mix::Q5KM, Role::Value, BlockType::Q6K, 16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(blocks_with(Mix::Q4KS, Role::Value, BlockType::Q5K, 16), [0, 1, 2, 3]);
        assert_eq!(blocks_with(Mix::Q4KS, Role::Down, BlockType::Q5K, 16), [0, 1]);
        assert_eq!(blocks_with(Mix::Q3KM, Role::Down, BlockType::Q5K, 16), [0]);
        assert_eq!(blocks_with(Mix::Q3KM, Role::Value, BlockType::Q5K, 16), [0, 1]);
        assert_eq!(Mix::Q3KL.of_role(Role::Output, 3, 16, None), BlockType::Q5K);
        assert_eq!(Mix::Q4KM.of_role(Role::Other, 3, 16, None), BlockType::Q4K);
        assert_eq!(Mix::Q4KM.of_role(Role::Key, 3, 16, Some(8)), BlockType::Q8_0);
        assert!(Mix::ALL.iter().all(|mix| mix.of_role(Role::Head, 0, 16, None) == BlockType::Q6K));
        assert_eq!(Mix::named("q4_k_m"), Some(Mix::Q4KM));
        assert_eq!(Mix::named("q4_k"), None);
    }
}
