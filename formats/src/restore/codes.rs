//! Codes, one for each weight, unpacked from where they are.

use std::ops::Range;

use super::parts::{Parts, Strips};

/// Rows and columns of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub rows: Range<u64>,
    pub columns: Range<u64>,
}

impl Window {
    pub(super) fn height(&self) -> u64 {
        self.rows.end - self.rows.start
    }

    pub(super) fn width(&self) -> u64 {
        self.columns.end - self.columns.start
    }
}

/// The codes of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Codes {
    /// The stored tensor.
    pub part: usize,
    /// Bits of a code, at most 8.
    pub bits: u64,
    pub place: Place,
}

/// Where the code of a row and column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The codes of a row follow each other, lowest bits first. Each row begins so many bytes after the one before.
    Rows { row_bytes: u64 },
    /// The codes of all rows follow each other. The high half of a byte comes first, or the low one.
    Flat { columns: u64, is_high_first: bool, bytes: u64 },
    /// Words of 32 bits: the codes of a row lie below each other in a column of words, lowest bits first.
    Down { words: u64 },
    /// Words of 32 bits: the codes of a column lie below each other in a column of words, lowest bits first.
    ColumnsDown { words: u64 },
    /// Words of 32 bits: the codes of a column lie in a row of words, lowest bits first, or of each eight in another order.
    ColumnsAcross { words: u64, is_interleaved: bool },
}

/// The place of each of eight codes of four bits in a word of AWQ.
const INTERLEAVED: [u64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Codes {
    /// The codes of a window, row by row.
    pub(super) fn read<P: Parts>(&self, parts: &P, window: &Window) -> Result<Vec<u8>, P::Error> {
        match self.place {
            Place::Rows { row_bytes } => self.rows(parts, window, row_bytes),
            Place::Flat { columns, is_high_first, bytes } => self.flat(parts, window, columns, is_high_first, bytes),
            Place::Down { words } => self.down(parts, window, words),
            Place::ColumnsDown { words } => self.columns_down(parts, window, words),
            Place::ColumnsAcross { words, is_interleaved } => self.across(parts, window, words, is_interleaved),
        }
    }

    /// The bytes that only some whole rows need, if they are in one piece.
    pub(super) fn bytes_of(&self, rows: Range<u64>) -> Option<Range<u64>> {
        match self.place {
            Place::Rows { row_bytes } => Some(rows.start * row_bytes..rows.end * row_bytes),
            Place::Flat { columns, bytes, .. } => {
                let at = |row: u64| (row * columns * self.bits / 8).min(bytes);
                Some(at(rows.start)..at(rows.end))
            }
            Place::Down { .. } | Place::ColumnsDown { .. } | Place::ColumnsAcross { .. } => None,
        }
    }

    fn rows<P: Parts>(&self, parts: &P, window: &Window, row_bytes: u64) -> Result<Vec<u8>, P::Error> {
        let Range { start, end } = &window.columns;
        let (first, last) = (start * self.bits / 8, (end * self.bits).div_ceil(8));
        let strips = Strips {
            first: window.rows.start * row_bytes + first,
            distance: row_bytes,
            length: last - first,
            count: window.height(),
        };
        let read = strips.read(parts, self.part)?;
        let mut out = Vec::with_capacity((window.height() * window.width()) as usize);
        for row in 0..window.height() {
            unpack(read.strip(row as usize), start * self.bits % 8, self.bits, window.width(), &mut out);
        }
        Ok(out)
    }

    fn flat<P: Parts>(
        &self,
        parts: &P,
        window: &Window,
        columns: u64,
        is_high_first: bool,
        bytes: u64,
    ) -> Result<Vec<u8>, P::Error> {
        let mut out = Vec::with_capacity((window.height() * window.width()) as usize);
        // Whole rows follow each other; pieces of rows are read one by one.
        let is_whole = window.columns == (0..columns);
        let pieces = if is_whole { 1 } else { window.height() };
        let codes = if is_whole { window.height() * columns } else { window.width() };
        for piece in 0..pieces {
            let first = (window.rows.start + piece) * columns + window.columns.start;
            let range = (first * self.bits / 8).min(bytes)..((first + codes) * self.bits).div_ceil(8).min(bytes);
            let read = Strips { first: range.start, distance: 0, length: range.end - range.start, count: 1 };
            let read = read.read(parts, self.part)?;
            let strip = read.strip(0);
            if is_high_first {
                let nibble = |at: u64| {
                    let byte = strip.get((at / 2) as usize).copied().unwrap_or(0);
                    if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
                };
                out.extend((0..codes).map(|i| nibble(first % 2 + i)));
            } else {
                unpack(strip, first * self.bits % 8, self.bits, codes, &mut out);
            }
        }
        Ok(out)
    }

    /// Words that lie below each other, `first` of the window to `last`, of the columns of words in `across`.
    fn words_down<P: Parts>(
        &self,
        parts: &P,
        words: u64,
        along: &Range<u64>,
        across: &Range<u64>,
    ) -> Result<(Vec<u32>, u64), P::Error> {
        let (first, last) = (along.start * self.bits / 32, (along.end * self.bits).div_ceil(32));
        let length = 4 * (across.end - across.start);
        let strips =
            Strips { first: 4 * (first * words + across.start), distance: 4 * words, length, count: last - first };
        let read = strips.read(parts, self.part)?;
        let mut all = Vec::with_capacity((length / 4 * (last - first)) as usize);
        for row in 0..last - first {
            all.extend(read.strip(row as usize).as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)));
        }
        Ok((all, first))
    }

    fn down<P: Parts>(&self, parts: &P, window: &Window, words: u64) -> Result<Vec<u8>, P::Error> {
        let (read, first) = self.words_down(parts, words, &window.columns, &window.rows)?;
        let (height, width) = (window.height() as usize, window.width() as usize);
        let mut out = vec![0; height * width];
        for (column, at) in window.columns.clone().enumerate() {
            let (word, shift) = self.word(at, first);
            for row in 0..height {
                out[row * width + column] = self.code(&read, word * height + row, height, shift);
            }
        }
        Ok(out)
    }

    fn columns_down<P: Parts>(&self, parts: &P, window: &Window, words: u64) -> Result<Vec<u8>, P::Error> {
        let (read, first) = self.words_down(parts, words, &window.rows, &window.columns)?;
        let width = window.width() as usize;
        let mut out = Vec::with_capacity(window.height() as usize * width);
        for at in window.rows.clone() {
            let (word, shift) = self.word(at, first);
            out.extend((0..width).map(|column| self.code(&read, word * width + column, width, shift)));
        }
        Ok(out)
    }

    /// The word that a code begins in, counted from `first`, and the bit.
    fn word(&self, at: u64, first: u64) -> (usize, u64) {
        let bit = at * self.bits - 32 * first;
        ((bit / 32) as usize, bit % 32)
    }

    /// The code that begins at a bit of a word and may go on in the word below it.
    fn code(&self, words: &[u32], at: usize, below: usize, shift: u64) -> u8 {
        let word = |at: usize| u64::from(words.get(at).copied().unwrap_or(0));
        let both = if shift + self.bits > 32 { word(at) | word(at + below) << 32 } else { word(at) };
        (both >> shift & ((1 << self.bits) - 1)) as u8
    }

    fn across<P: Parts>(
        &self,
        parts: &P,
        window: &Window,
        words: u64,
        is_interleaved: bool,
    ) -> Result<Vec<u8>, P::Error> {
        let (first, last) = (window.rows.start * self.bits / 32, (window.rows.end * self.bits).div_ceil(32));
        let strips = Strips {
            first: 4 * (window.columns.start * words + first),
            distance: 4 * words,
            length: 4 * (last - first),
            count: window.width(),
        };
        let read = strips.read(parts, self.part)?;
        let (height, width) = (window.height() as usize, window.width() as usize);
        let mut out = vec![0; height * width];
        let mut codes = Vec::with_capacity(height);
        for column in 0..width {
            let strip = read.strip(column);
            codes.clear();
            if is_interleaved {
                codes.extend(window.rows.clone().map(|row| {
                    let nibble = 8 * (row / 8 - first) + INTERLEAVED[(row % 8) as usize];
                    strip.get((nibble / 2) as usize).map_or(0, |byte| byte >> (4 * (nibble % 2)) & 15)
                }));
            } else {
                unpack(strip, window.rows.start * self.bits - 32 * first, self.bits, height as u64, &mut codes);
            }
            for (row, &code) in codes.iter().enumerate() {
                out[row * width + column] = code;
            }
        }
        Ok(out)
    }
}

/// Appends codes of at most 8 bits that follow each other from a bit on, lowest bits first.
fn unpack(bytes: &[u8], bit: u64, bits: u64, count: u64, out: &mut Vec<u8>) {
    if bits == 8 && bit.is_multiple_of(8) {
        let start = ((bit / 8) as usize).min(bytes.len());
        out.extend_from_slice(&bytes[start..bytes.len().min(start + count as usize)]);
        return;
    }
    if bits == 4 && bit.is_multiple_of(8) {
        let before = out.len();
        let pairs = bytes.iter().skip((bit / 8) as usize).take(count.div_ceil(2) as usize);
        out.extend(pairs.flat_map(|byte| [byte & 15, byte >> 4]));
        out.truncate(before + count as usize);
        return;
    }
    let byte = |at: u64| u16::from(bytes.get(at as usize).copied().unwrap_or(0));
    out.extend((0..count).map(|i| {
        let at = bit + i * bits;
        ((byte(at / 8) | byte(at / 8 + 1) << 8) >> (at % 8)) as u8 & ((1_u16 << bits) - 1) as u8
    }));
}
