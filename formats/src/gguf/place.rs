//! Tensors of a file that is to be made of a model: what they are called, what they hold, and in which order.

/// A tensor of a model.
#[derive(Debug, Clone, Copy)]
pub struct SourceTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions.
    pub shape: &'a [i64],
    /// The index of a tensor before it that has the same bytes, if there is one.
    pub same_as: Option<usize>,
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// The tensors that it holds, one after the other, by index: one, those of all experts, or those whose rows it joins.
    pub sources: Vec<usize>,
    /// The order of its rows.
    pub rows: Rows,
    /// Whether 1 is added to its weights.
    pub adds_one: bool,
    /// What it may be.
    pub holds: Holds,
}

/// In which order the rows of a tensor of the model are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As in the model.
    AsTheyAre,
    /// Of the rows of each of so many heads, each of the first half comes before the one that is as far into the second half.
    Turned {
        /// Heads.
        heads: u32,
    },
    /// The second half before the first.
    HalvesSwapped,
}

/// What a tensor of the file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Blocks, or floats of its own type.
    Blocks,
    /// Floats of its own type.
    Floats,
    /// F32 whatever it was.
    F32,
    /// F16 if it was, and else F32.
    F16OrF32,
}

/// A tensor that the model does not have.
#[derive(Debug, Clone, PartialEq)]
pub struct Extra {
    /// Its name.
    pub name: String,
    /// Its weights: a list.
    pub values: Vec<f32>,
}
