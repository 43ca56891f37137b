//! Where the bytes of stored tensors come from.

use std::ops::Range;

/// The bytes of stored tensors, each known by its place in a list.
pub trait Parts {
    /// Some bytes.
    type Bytes: AsRef<[u8]>;

    /// Why bytes cannot be read.
    type Error;

    /// Ranges of the bytes of one stored tensor, counted from its start, in the order asked for.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, part: usize, ranges: &[Range<u64>]) -> Result<Vec<Self::Bytes>, Self::Error>;
}

/// Equal lengths of bytes of a part at equal distances.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strips {
    /// Where the first begins.
    pub first: u64,
    /// From the start of one to that of the next.
    pub distance: u64,
    /// Bytes of each.
    pub length: u64,
    /// How many there are.
    pub count: u64,
}

/// Strips that were read.
pub(super) struct Read<B> {
    bytes: Vec<B>,
    /// Bytes of a strip, where all are in one piece.
    joined: Option<usize>,
}

impl Strips {
    /// Reads them; in one piece where they follow each other.
    pub(super) fn read<P: Parts>(self, parts: &P, part: usize) -> Result<Read<P::Bytes>, P::Error> {
        let Self { first, distance, length, count } = self;
        if distance == length || count == 1 {
            let whole = first..first + length * count;
            return Ok(Read { bytes: parts.read(part, std::slice::from_ref(&whole))?, joined: Some(length as usize) });
        }
        let ranges: Vec<_> = (0..count).map(|i| first + i * distance).map(|start| start..start + length).collect();
        Ok(Read { bytes: parts.read(part, &ranges)?, joined: None })
    }
}

impl<B: AsRef<[u8]>> Read<B> {
    /// A strip, by its number.
    pub(super) fn strip(&self, number: usize) -> &[u8] {
        let bytes = |at: usize| self.bytes.get(at).map_or(&[][..], |bytes| bytes.as_ref());
        match self.joined {
            Some(length) => bytes(0).get(number * length..(number + 1) * length).unwrap_or_default(),
            None => bytes(number),
        }
    }
}
