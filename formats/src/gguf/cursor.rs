//! A place in the start of a file, from which numbers and text are read.

use super::GgufProblem;

/// Why reading ends.
pub(super) enum Stop {
    /// There are too few bytes.
    Short {
        /// Bytes that would be enough.
        wanted: u128,
    },
    /// What is there is wrong.
    Wrong(GgufProblem),
}

/// A number of a fixed size.
pub(super) trait Number: Sized {
    /// The number that bytes begin with, and its size.
    fn of(bytes: &[u8]) -> Option<(Self, usize)>;
}

/// A place in the start of a file.
pub(super) struct Cursor<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    /// Bytes of the file.
    pub file: u64,
    /// The key or tensor that is read.
    pub place: Option<String>,
}

impl Cursor<'_> {
    pub(super) fn number<T: Number>(&mut self) -> Result<T, Stop> {
        let rest = &self.bytes[self.at..];
        let (number, size) = T::of(rest).ok_or(Stop::Short { wanted: self.at as u128 + size_of::<T>() as u128 })?;
        self.at += size;
        Ok(number)
    }

    pub(super) fn text(&mut self) -> Result<String, Stop> {
        let length = self.number::<u64>()?;
        self.expect("bytes of text", length, 1)?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let text = end.and_then(|end| self.bytes.get(self.at..end));
        let text = text.ok_or(Stop::Short { wanted: self.at as u128 + u128::from(length) })?;
        let text = std::str::from_utf8(text)
            .map_err(|e| Stop::Wrong(GgufProblem::NotUtf8((self.at + e.valid_up_to()) as u64)))?;
        self.at += text.len();
        Ok(text.to_string())
    }

    /// Checks that the file can hold so many things of some bytes at least.
    pub(super) fn expect(&self, what: &'static str, count: u64, least: u64) -> Result<(), Stop> {
        let left = self.file.saturating_sub(self.at as u64);
        if u128::from(count) * u128::from(least) > u128::from(left) {
            return Err(Stop::Wrong(GgufProblem::Count { what, count }));
        }
        Ok(())
    }
}
