//! Where tensors are cut into the rows of the `weights` table.

use crate::Model;

/// Elements of a chunk: enough to make per-row work negligible, little enough to keep batches small and scans parallel.
const TARGET: u64 = 1 << 16;

/// No chunk has more elements, so that every value fits a message; longer rows are cut.
pub(crate) const LIMIT: u64 = 1 << 20;

/// A run of consecutive elements of one tensor: whole rows where they fit. It follows from the tensor's shape alone, so
/// that chunks of a model and of what it was quantized to correspond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Index of the tensor in the model.
    pub tensor: usize,
    /// 0, 1, 2 ... within the tensor.
    pub number: i32,
    /// Index of the first element in the tensor.
    pub start: u64,
    /// Elements.
    pub elements: u64,
    /// Elements of each of its rows.
    pub row_length: u64,
}

/// The chunks of all tensors, in the order of the tensors.
pub(crate) fn chunks(model: &Model) -> Vec<Chunk> {
    let mut all = Vec::new();
    for (tensor, entry) in model.tensors().iter().enumerate() {
        let elements = entry.elements();
        // Elements of less than a byte can only be cut between bytes; rows do not matter, for they are not quantized.
        let row = if entry.stored.bits() < 8 { elements } else { entry.row_length() };
        all.extend(cut(elements, row).enumerate().map(|(number, (start, length))| Chunk {
            tensor,
            number: i32::try_from(number).unwrap_or(i32::MAX),
            start,
            elements: length,
            row_length: row.min(length),
        }));
    }
    all
}

/// First element and length of each chunk of a tensor.
pub(crate) fn cut(elements: u64, row: u64) -> impl Iterator<Item = (u64, u64)> {
    // A row that is too long is cut into pieces of the limit, a multiple of every group size.
    let (span, piece) = if row > LIMIT { (row, LIMIT) } else { (elements, (TARGET / row.max(1)).max(1) * row.max(1)) };
    (0..elements).step_by(span.max(1) as usize).flat_map(move |first| {
        let end = first + span.min(elements - first);
        (first..end).step_by(piece as usize).map(move |start| (start, piece.min(end - start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_rows_that_cover_the_tensor() {
        for (elements, row) in
            [(1 << 20, 4096), (300 * 320, 320), (128 * 576, 576), (1 << 22, 1 << 20), (7, 7), (3 * 200_000, 200_000)]
        {
            let pieces: Vec<_> = cut(elements, row).collect();
            assert_eq!(pieces.iter().map(|(_, length)| length).sum::<u64>(), elements);
            assert!(pieces.iter().all(|(start, length)| start % row == 0 && length % row == 0 && *length <= LIMIT));
            assert!(pieces.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0));
        }
    }

    #[test]
    fn long_rows_are_cut_at_a_multiple_of_every_group_size() {
        let (row, rows) = (2_500_000, 2);
        let pieces: Vec<_> = cut(row * rows, row).collect();
        assert_eq!(pieces.iter().map(|(_, length)| length).sum::<u64>(), row * rows);
        assert!(pieces.iter().all(|(start, length)| *length <= LIMIT && start % row % 256 == 0));
        assert_eq!(pieces[3].0, row, "a row starts a chunk");
        assert_eq!(cut(0, 0).count(), 0);
    }
}
