//! Second moments as they are given to be factored.

/// Second moments of consecutive channels of an input, up to a common factor: Σ x xᵀ.
#[derive(Debug, Clone, Copy)]
pub struct MomentBlock<'a> {
    /// Channels.
    pub size: usize,
    /// The upper triangle, row by row: `size * (size + 1) / 2` numbers.
    pub triangle: &'a [f32],
}

impl MomentBlock<'_> {
    /// The moment of two channels.
    pub(super) fn at(&self, a: usize, b: usize) -> f32 {
        let (row, column) = (a.min(b), a.max(b));
        self.triangle[row * (2 * self.size - row + 1) / 2 + column - row]
    }

    pub(super) fn diagonal(&self) -> impl Iterator<Item = f32> + '_ {
        (0..self.size).map(|channel| self.at(channel, channel))
    }
}
