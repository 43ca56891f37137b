//! How weights are cut into pieces that are worked on one after another.

/// Elements after which error sums are folded: whole rows, at least this many, and longer rows in pieces of it. Part of
/// the specification, since it decides the order of additions; results are the same however many threads share the
/// blocks. A multiple of every group size.
pub(crate) const BLOCK: usize = 1 << 16;

/// Rows, at least `least` weights of them, or pieces of `least` weights of a longer row: the first weight of each slice, their
/// number, and where in its row the first is.
pub(crate) fn slices(
    length: usize,
    row_length: usize,
    least: usize,
) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let (span, piece) = if row_length > least {
        (row_length, least)
    } else {
        let rows = least.div_ceil(row_length.max(1)) * row_length.max(1);
        (rows, rows)
    };
    (0..length).step_by(span).flat_map(move |first| {
        let end = length.min(first + span);
        (first..end).step_by(piece).map(move |start| (start, piece.min(end - start), start - first))
    })
}
