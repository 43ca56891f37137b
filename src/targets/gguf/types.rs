//! Which type each tensor of a GGUF file is asked to have.

use arrow_quant_formats::gguf::language::{LanguageModel, Mix};
use arrow_quant_formats::manifest::Omission;
use arrow_quant_kernels::{Bits, BlockType};

use crate::config::WeightType;
use crate::plan::Request;
use crate::{DiffusionQuantConfig, Result};

/// One type for all tensors, or a mix.
#[derive(Debug, Clone, Copy)]
pub(super) enum Types {
    One(BlockType),
    Mix(Mix),
}

impl Types {
    /// What a configuration asks for. GGUF has no grouped integers: a number of bits stands for what llama.cpp's users take
    /// at that number.
    pub(super) fn of(config: &DiffusionQuantConfig) -> Result<Self> {
        Ok(match config.weight_type {
            WeightType::Block(block_type) => Self::One(block_type),
            WeightType::Mix(mix) => Self::Mix(mix),
            WeightType::Int(Bits::Two) => Self::One(BlockType::Q2K),
            WeightType::Int(Bits::Three) => Self::Mix(Mix::Q3KM),
            WeightType::Int(Bits::Four) => Self::Mix(Mix::Q4KM),
            WeightType::Int(Bits::Five) => Self::Mix(Mix::Q5KM),
            WeightType::Int(Bits::Six) => Self::One(BlockType::Q6K),
            WeightType::Int(Bits::Eight) => Self::One(BlockType::Q8_0),
        })
    }

    pub(super) fn file_type(self) -> Option<u32> {
        match self {
            Self::One(_) => None,
            Self::Mix(mix) => Some(mix.file_type()),
        }
    }
}

/// What each tensor of a model may become. `same` has the first of tensors that are equal.
pub(super) fn requests(language: &LanguageModel, same: &[Option<usize>], types: Types) -> Vec<Request> {
    let mut requests = vec![Request::Free; same.len()];
    for (index, why) in &language.left_out {
        requests[*index] = Request::LeftOut(*why);
    }
    for place in &language.places {
        let request = match types {
            _ if place.is_f32 => Request::Stay,
            Types::One(block_type) => Request::Type(block_type),
            Types::Mix(mix) => Request::Type(mix.block_type(language, place)),
        };
        place.sources.iter().for_each(|source| requests[*source] = request);
    }
    // What is stored for a tensor that is equal to it must become what that one does.
    for (index, first) in same.iter().enumerate() {
        if let Some(first) = *first
            && requests[first] == Request::LeftOut(Omission::Tied)
        {
            requests[first] = requests[index];
        }
    }
    requests
}
