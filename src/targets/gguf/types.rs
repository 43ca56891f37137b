//! Which type each tensor of a GGUF file is asked to have.

use arrow_quant_formats::gguf::Holds;
use arrow_quant_formats::gguf::language::Mix;
use arrow_quant_formats::manifest::Omission;
use arrow_quant_kernels::{Bits, BlockType};

use super::GgufFile;
use crate::config::WeightType;
use crate::plan::Request;

/// GGUF has no grouped integers: a number of bits stands for what users of llama.cpp take at that number.
pub(super) fn of_bits(asked: WeightType) -> WeightType {
    match asked {
        WeightType::Int(Bits::Two) => WeightType::Block(BlockType::Q2K),
        WeightType::Int(Bits::Three) => WeightType::Mix(Mix::Q3KM),
        WeightType::Int(Bits::Four) => WeightType::Mix(Mix::Q4KM),
        WeightType::Int(Bits::Five) => WeightType::Mix(Mix::Q5KM),
        WeightType::Int(Bits::Six) => WeightType::Block(BlockType::Q6K),
        WeightType::Int(Bits::Eight) => WeightType::Block(BlockType::Q8_0),
        WeightType::Block(_) | WeightType::Mix(_) | WeightType::Float(_) => asked,
    }
}

/// What each tensor of a model may become. `same` has the first of tensors that are equal.
pub(super) fn requests(file: &GgufFile, same: &[Option<usize>], asked: WeightType) -> Vec<Request> {
    let mut requests = vec![Request::Free; same.len()];
    for (index, why) in &file.left_out {
        requests[*index] = Request::LeftOut(*why);
    }
    for place in &file.places {
        let request = match asked {
            _ if place.holds != Holds::Blocks => Request::Stay,
            WeightType::Mix(mix) => Request::Type(file.block_type(mix, place)),
            WeightType::Int(_) | WeightType::Block(_) | WeightType::Float(_) => Request::Free,
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
