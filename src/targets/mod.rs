//! What a quantized model can be written as, one file a target: what it allows, its names, and its files.

mod part;

pub(crate) use part::{PartWriter, UNFINISHED, WrittenTensor};
