//! Weight files and model directories: bytes in, tensors out, and back.
//!
//! Nothing here opens a file, and nothing here knows an engine. A format takes the bytes of a header and gives the
//! tensors with their stored types, shapes and ranges of bytes; a [`directory`] takes a listing and says which files are
//! a model's weights. All of it comes from strangers, so every figure is checked before it is believed, and every error
//! says what is wrong as data.
//!
//! | module | format |
//! |---|---|
//! | [`safetensors`] | one file of tensors |
//! | [`gguf`] | one file of tensors, keys and a tokenizer |
//! | [`directory`] | the layouts of transformers and diffusers |
//! | [`schemes`] | how other programs quantize checkpoints, and what tells |
//! | [`restore`] | the weights of such checkpoints |
//! | [`manifest`] | `arrow_quant.json`, what a quantized model directory says of itself |

#![forbid(unsafe_code)]

pub mod directory;
mod error;
pub mod gguf;
mod hash;
pub mod manifest;
mod names;
pub mod restore;
pub mod safetensors;
pub mod schemes;
mod stored;
mod tensors;

pub use error::{FormatError, Problem};
pub use hash::ContentHash;
pub use names::{full_name, nearest, shown};
pub use stored::{StoredType, UnknownStoredType};
pub use tensors::{TensorEntry, elements, row_length};
