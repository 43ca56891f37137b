//! Choices in words, put together when the program is compiled, so that a new choice is in every text.

use arrow_quant_formats::gguf::language::Mix;
use arrow_quant_kernels::{Bits, BlockType, Dtype, GroupSize};

/// The floats that weights can become, with their names.
pub(super) const FLOATS: [(Dtype, &str); 3] = [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::BF16, "bf16")];

/// Every width: `2, 3, 4, 5, 6 or 8`.
pub(crate) const BITS: &str = {
    const TEXT: &Text = &Text::new().list(&numbers_of_bits(), " or ");
    TEXT.as_str()
};

/// Every width, for more to follow: `2, 3, 4, 5, 6, 8`.
pub(crate) const BITS_AND_MORE: &str = {
    const TEXT: &Text = &Text::new().list(&numbers_of_bits(), ", ");
    TEXT.as_str()
};

/// Every group size: `16, 32, 64, 128 or 256`.
pub(crate) const GROUP_SIZES: &str = {
    const TEXT: &Text = &Text::new().list(&numbers_of_group_sizes(), " or ");
    TEXT.as_str()
};

/// Every type: `int2, int3 … f16 or bf16`.
pub(crate) const TYPES: &str = {
    const TEXT: &Text = &Text::new().types();
    TEXT.as_str()
};

/// What an entry of `layer_bit_widths` may be.
pub(crate) const WIDTH: &str = {
    const TEXT: &Text = &Text::new().push(BITS_AND_MORE).push(", a block type such as q6_k, or 16 to keep it");
    TEXT.as_str()
};

/// What `layer_bit_widths` may be.
pub(crate) const WIDTHS: &str = {
    const TEXT: &Text = &Text::new()
        .push("a mapping from a name or regular expression to ")
        .push(BITS_AND_MORE)
        .push(", 16 or a block type");
    TEXT.as_str()
};

const fn numbers_of_bits() -> [usize; Bits::ALL.len()] {
    let mut numbers = [0; Bits::ALL.len()];
    let mut at = 0;
    while at < numbers.len() {
        numbers[at] = Bits::ALL[at].get();
        at += 1;
    }
    numbers
}

const fn numbers_of_group_sizes() -> [usize; GroupSize::ALL.len()] {
    let mut numbers = [0; GroupSize::ALL.len()];
    let mut at = 0;
    while at < numbers.len() {
        numbers[at] = GroupSize::ALL[at].get();
        at += 1;
    }
    numbers
}

/// A text of a bounded length, which a constant can be made of.
struct Text {
    bytes: [u8; 320],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Self { bytes: [0; 320], length: 0 }
    }

    const fn push(mut self, text: &str) -> Self {
        let mut at = 0;
        while at < text.len() {
            self.bytes[self.length] = text.as_bytes()[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    /// Adds numbers, between the last two of them `last`.
    const fn list(mut self, numbers: &[usize], last: &str) -> Self {
        let mut at = 0;
        while at < numbers.len() {
            if at > 0 {
                self = self.push(if at + 1 == numbers.len() { last } else { ", " });
            }
            self = self.number(numbers[at]);
            at += 1;
        }
        self
    }

    /// Adds the names of all types.
    const fn types(mut self) -> Self {
        let mut at = 0;
        while at < Bits::ALL.len() {
            self = self.push(Bits::ALL[at].name()).push(", ");
            at += 1;
        }
        let mut at = 0;
        while at < BlockType::FILLED.len() {
            self = self.push(BlockType::FILLED[at].name()).push(", ");
            at += 1;
        }
        let mut at = 0;
        while at < Mix::ALL.len() {
            self = self.push(Mix::ALL[at].name()).push(", ");
            at += 1;
        }
        let mut at = 0;
        while at < FLOATS.len() {
            if at > 0 {
                self = self.push(if at + 1 == FLOATS.len() { " or " } else { ", " });
            }
            self = self.push(FLOATS[at].1);
            at += 1;
        }
        self
    }

    const fn number(mut self, number: usize) -> Self {
        if number >= 10 {
            self = self.number(number / 10);
        }
        self.bytes[self.length] = b'0' + (number % 10) as u8;
        self.length += 1;
        self
    }

    const fn as_str(&self) -> &str {
        let (text, _) = self.bytes.split_at(self.length);
        match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(_) => panic!("digits and texts are UTF-8"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice, WeightType};

    #[test]
    fn choices_are_listed_in_order() {
        let numbers: Vec<_> = Bits::ALL.iter().map(|bits| bits.get().to_string()).collect();
        assert_eq!(BITS_AND_MORE, numbers.join(", "));
        assert_eq!(BITS.replace(" or ", ", "), BITS_AND_MORE);
        assert!(WIDTH.starts_with(BITS_AND_MORE) && WIDTHS.contains(BITS_AND_MORE));
        let names: Vec<_> = WeightType::all().into_iter().map(|(weight_type, _)| weight_type.name()).collect();
        assert_eq!(TYPES.replace(" or ", ", "), names.join(", "));
        let numbers: Vec<_> = GroupSize::ALL.iter().map(|size| size.get().to_string()).collect();
        assert_eq!(GROUP_SIZES.replace(" or ", ", "), numbers.join(", "));
    }
}
