//! Parameters of groups of weights: scales, zero points, minima.

use std::ops::Range;

use super::codes::{Codes, Window};
use super::numbers::Number;
use super::parts::{Parts, Strips};

/// A parameter of each block of rows and columns of a matrix.
#[derive(Debug, Clone)]
pub(super) struct Parameters {
    pub values: Values,
    /// Blocks in a row.
    pub columns: u64,
    /// Rows and columns of a block.
    pub block: [u64; 2],
    /// What is done to the values.
    pub then: Then,
}

/// Where values are.
#[derive(Debug, Clone)]
pub(super) enum Values {
    /// Stored numbers.
    Numbers { part: usize, number: Number, order: Order },
    /// Packed codes, and what each stands for.
    Codes { codes: Codes, levels: Vec<f32> },
    /// A list of numbers that is quantized itself: `map[code] * scale + offset`, a scale for so many codes.
    Nested { part: usize, map: Vec<f32>, scales: Vec<f32>, block: u64, offset: f32 },
}

/// The order of stored numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Row by row.
    Rows,
    /// Column by column, so many rows each.
    Columns { rows: u64 },
    /// Tiles of 128 rows and 4 columns, as cuBLAS has them; so many columns with the padding.
    Tiles { columns: u64 },
}

/// What is done to a value by a number of the whole tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Then {
    Nothing,
    Times(f32),
    DividedBy(f32),
}

/// Rows and columns of a tile.
const TILE: [u64; 2] = [128, 4];

/// The values that a window of weights needs.
pub(super) struct Loaded {
    values: Vec<f32>,
    window: Window,
    block: [u64; 2],
}

impl Parameters {
    /// One number in a block of all rows and columns.
    pub(super) fn of_all(values: Values) -> Self {
        Self { values, columns: 1, block: [u64::MAX, u64::MAX], then: Then::Nothing }
    }

    pub(super) fn part(&self) -> usize {
        match &self.values {
            Values::Numbers { part, .. } | Values::Nested { part, .. } => *part,
            Values::Codes { codes, .. } => codes.part,
        }
    }

    /// The values of a window of weights; of all columns, where columns are not in the order of the groups.
    pub(super) fn load<P: Parts>(&self, parts: &P, weights: &Window, is_ordered: bool) -> Result<Loaded, P::Error> {
        let of = |range: &Range<u64>, size: u64| range.start / size..range.end.div_ceil(size);
        let columns = if is_ordered { of(&weights.columns, self.block[1]) } else { 0..self.columns };
        let window = Window { rows: of(&weights.rows, self.block[0]), columns };
        let mut values = match &self.values {
            Values::Numbers { part, number, order } => self.numbers(parts, &window, *part, *number, *order)?,
            Values::Codes { codes, levels } => {
                let codes = codes.read(parts, &window)?;
                codes.into_iter().map(|code| levels.get(usize::from(code)).copied().unwrap_or(0.0)).collect()
            }
            Values::Nested { part, map, scales, block, offset } => {
                let range = window.rows.start * self.columns..window.rows.end * self.columns;
                let read = parts.read(*part, std::slice::from_ref(&range))?;
                let codes = read.first().map_or(&[][..], |bytes| bytes.as_ref());
                let value = |(index, code): (u64, &u8)| {
                    let scale = scales.get((index / block) as usize).copied().unwrap_or(0.0);
                    map.get(usize::from(*code)).copied().unwrap_or(0.0) * scale + offset
                };
                range.zip(codes).map(value).collect()
            }
        };
        match self.then {
            Then::Nothing => {}
            Then::Times(factor) => values.iter_mut().for_each(|value| *value *= factor),
            Then::DividedBy(divisor) => values.iter_mut().for_each(|value| *value /= divisor),
        }
        Ok(Loaded { values, window, block: self.block })
    }

    fn numbers<P: Parts>(
        &self,
        parts: &P,
        window: &Window,
        part: usize,
        number: Number,
        order: Order,
    ) -> Result<Vec<f32>, P::Error> {
        let size = number.size();
        let (height, width) = (window.height(), window.width());
        let mut out = Vec::with_capacity((height * width) as usize);
        match order {
            Order::Rows => {
                let strips = Strips {
                    first: size * (window.rows.start * self.columns + window.columns.start),
                    distance: size * self.columns,
                    length: size * width,
                    count: height,
                };
                let read = strips.read(parts, part)?;
                (0..height).for_each(|row| number.append(read.strip(row as usize), &mut out));
            }
            Order::Columns { rows } => {
                let strips = Strips {
                    first: size * (window.columns.start * rows + window.rows.start),
                    distance: size * rows,
                    length: size * height,
                    count: width,
                };
                let read = strips.read(parts, part)?;
                let mut turned = Vec::with_capacity((height * width) as usize);
                (0..width).for_each(|column| number.append(read.strip(column as usize), &mut turned));
                let at = |row: u64, column: u64| turned.get((column * height + row) as usize).copied().unwrap_or(0.0);
                out.extend(
                    (0..height).flat_map(|row| (0..width).map(move |column| (row, column))).map(|(r, c)| at(r, c)),
                );
            }
            Order::Tiles { columns } => {
                // Tiles that lie side by side are in one piece.
                let (first, last) = (window.rows.start / TILE[0], window.rows.end.div_ceil(TILE[0]));
                let length = size * TILE[0] * columns;
                let strips = Strips { first: first * length, distance: length, length, count: last - first };
                let read = strips.read(parts, part)?;
                let mut tiles = Vec::new();
                (0..last - first).for_each(|tile| number.append(read.strip(tile as usize), &mut tiles));
                for row in window.rows.clone() {
                    let tiles_above = (row / TILE[0] - first) * (columns / TILE[1]);
                    out.extend(window.columns.clone().map(|column| {
                        let tile = tiles_above + column / TILE[1];
                        let within = row % 32 * 16 + row % TILE[0] / 32 * 4 + column % TILE[1];
                        tiles.get((tile * 512 + within) as usize).copied().unwrap_or(0.0)
                    }));
                }
            }
        }
        Ok(out)
    }
}

impl Loaded {
    /// The values of the blocks of a row of weights, from the first that was loaded on.
    pub(super) fn row(&self, row: u64) -> &[f32] {
        let width = self.window.width() as usize;
        let at = (row / self.block[0] - self.window.rows.start) as usize;
        self.values.get(at * width..(at + 1) * width).unwrap_or_default()
    }

    /// Where in a row the value of a column of weights is.
    pub(super) fn place(&self, column: u64) -> usize {
        (column / self.block[1] - self.window.columns.start) as usize
    }
}
