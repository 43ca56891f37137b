//! GGUF files, as llama.cpp and its relatives read them.
//!
//! The format: the letters `GGUF`, a version, the numbers of tensors and of keys, then keys with their values, then of each
//! tensor name, dimensions, type and place, then the data, each tensor at the next multiple of the alignment. The header does
//! not say how long it is, so [`parse`] is given the start of a file and asks for more until the header is whole.
//!
//! [`language`] and [`diffusion`] say what a GGUF file of a model of that kind has: names, keys, and which tensors stay floats.

mod cursor;
pub mod diffusion;
mod error;
pub mod imatrix;
pub mod language;
mod place;
mod read;
mod types;
mod values;
mod write;

pub use error::{GgufError, GgufProblem};
pub use place::{Extra, Holds, Place, Rows, SourceTensor};
pub use read::{Header, MAX_HEADER, Tensor, parse};
pub use types::TensorType;
pub use values::{Array, Value};
pub use write::{NewTensor, Written, write_header};

/// What a file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// The version that is written.
pub const VERSION: u32 = 3;

/// Where data begin, unless a file says otherwise: at multiples of this.
pub const ALIGNMENT: u64 = 32;

/// The key of another alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The most dimensions that ggml allows a tensor. Readers of diffusion models take one more.
pub const DIMENSIONS: usize = 4;

/// The longest name that ggml allows a tensor, in bytes.
pub const NAME_BYTES: usize = 63;
