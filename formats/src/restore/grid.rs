//! Weights that are codes of equal width with parameters for blocks of rows and columns.

use std::ops::Range;

use super::codes::{Codes, Window};
use super::parameters::{Loaded, Parameters};
use super::parts::Parts;
use super::rotation::rotate;

/// A matrix of weights: `(level(code) - zero) * scale + minimum`, each step rounded to F32, and only those steps that have
/// parameters.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    /// Columns of the matrix of codes, above zero.
    pub columns: u64,
    pub codes: Codes,
    /// What each code stands for.
    pub levels: Vec<f32>,
    pub zeros: Option<Parameters>,
    pub scales: Option<Parameters>,
    pub minima: Option<Parameters>,
    /// The group of each column, where groups are not runs of columns.
    pub groups: Option<Vec<u32>>,
    pub last: Last,
}

/// What is done last.
#[derive(Debug, Clone)]
pub(super) enum Last {
    Nothing,
    /// The products are rounded to signed bytes, if they have a scale of their row, and then runs of so many columns are rotated.
    Rotated {
        size: u64,
        bytes: Option<Parameters>,
    },
    /// The tensor has several matrices of so many rows, each of which is transposed.
    Transposed {
        rows: u64,
    },
}

impl Grid {
    /// Codes whose levels have one scale for each block.
    pub(super) fn scaled(columns: u64, codes: Codes, levels: Vec<f32>, scales: Option<Parameters>) -> Self {
        Self { columns, codes, levels, zeros: None, scales, minima: None, groups: None, last: Last::Nothing }
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameters> {
        let bytes = match &self.last {
            Last::Rotated { bytes, .. } => bytes.as_ref(),
            Last::Nothing | Last::Transposed { .. } => None,
        };
        [&self.zeros, &self.scales, &self.minima].into_iter().flatten().chain(bytes)
    }

    pub(super) fn parts(&self) -> Vec<usize> {
        self.parameters().map(Parameters::part).chain([self.codes.part]).collect()
    }

    pub(super) fn bytes_of(&self, elements: Range<u64>) -> Option<(usize, Range<u64>)> {
        if matches!(self.last, Last::Transposed { .. }) {
            return None;
        }
        let rows = elements.start.div_ceil(self.columns)..elements.end / self.columns;
        if rows.start >= rows.end {
            return None;
        }
        Some((self.codes.part, self.codes.bytes_of(rows)?))
    }

    pub(super) fn restore<P: Parts>(&self, parts: &P, elements: Range<u64>) -> Result<Vec<f32>, P::Error> {
        if let Last::Transposed { rows } = self.last {
            return self.transposed(parts, elements, rows);
        }
        // Parts of a row at the ends, and whole rows between, so that no more is computed than is asked for.
        let (mut start, mut values) = (elements.start, Vec::with_capacity((elements.end - elements.start) as usize));
        while start < elements.end {
            let (row, within) = (start / self.columns, start % self.columns);
            let left = elements.end - start;
            let whole = if within == 0 { left / self.columns } else { 0 };
            let (rows, columns, taken) = if whole > 0 {
                (row..row + whole, 0..self.columns, whole * self.columns)
            } else {
                let taken = left.min(self.columns - within);
                (row..row + 1, within..within + taken, taken)
            };
            let computed = self.whole_runs(columns.clone());
            let skipped = (columns.start - computed.start) as usize;
            let found = self.window(parts, &Window { rows, columns: computed })?;
            values.extend(found.into_iter().skip(skipped).take(taken as usize));
            start += taken;
        }
        Ok(values)
    }

    /// Columns that hold some columns and do not cut runs that are computed together.
    fn whole_runs(&self, columns: Range<u64>) -> Range<u64> {
        match self.last {
            Last::Rotated { size, .. } => {
                columns.start / size * size..columns.end.next_multiple_of(size).min(self.columns)
            }
            Last::Nothing | Last::Transposed { .. } => columns,
        }
    }

    /// Elements of transposed matrices: rows of the result are columns of the codes.
    fn transposed<P: Parts>(&self, parts: &P, elements: Range<u64>, rows: u64) -> Result<Vec<f32>, P::Error> {
        let (first, last) = (elements.start / rows, (elements.end - 1) / rows);
        let mut values = Vec::with_capacity(((last + 1 - first) * rows) as usize);
        let mut row = first;
        while row <= last {
            let (matrix, column) = (row / self.columns, row % self.columns);
            let end = self.columns.min(column + last + 1 - row);
            let window = Window { rows: matrix * rows..(matrix + 1) * rows, columns: column..end };
            let width = (end - column) as usize;
            let codes = self.window(parts, &window)?;
            for column in 0..width {
                values.extend(codes.iter().skip(column).step_by(width));
            }
            row += end - column;
        }
        values.truncate((elements.end - first * rows) as usize);
        values.drain(..(elements.start - first * rows) as usize);
        Ok(values)
    }

    /// The weights of a window.
    fn window<P: Parts>(&self, parts: &P, window: &Window) -> Result<Vec<f32>, P::Error> {
        let codes = self.codes.read(parts, window)?;
        let levels = |code: &u8| self.levels.get(usize::from(*code)).copied().unwrap_or(0.0);
        let mut values: Vec<f32> = codes.iter().map(levels).collect();
        values.resize((window.height() * window.width()) as usize, 0.0);
        self.each(parts, window, &self.zeros, &mut values, |value, zero| value - zero)?;
        self.each(parts, window, &self.scales, &mut values, |value, scale| value * scale)?;
        self.each(parts, window, &self.minima, &mut values, |value, minimum| value + minimum)?;
        if let Last::Rotated { size, bytes } = &self.last {
            let rounded = |value: f32, scale: f32| value.round_ties_even().clamp(-127.0, 127.0) * scale;
            self.each(parts, window, bytes, &mut values, rounded)?;
            values.chunks_mut(window.width().max(1) as usize).for_each(|row| rotate(row, *size as usize));
        }
        Ok(values)
    }

    /// Combines each weight of a window with its parameter, if there are parameters.
    fn each<P: Parts>(
        &self,
        parts: &P,
        window: &Window,
        parameters: &Option<Parameters>,
        values: &mut [f32],
        combine: impl Fn(f32, f32) -> f32,
    ) -> Result<(), P::Error> {
        let Some(parameters) = parameters else { return Ok(()) };
        let loaded = parameters.load(parts, window, self.groups.is_none())?;
        let places = self.places(&loaded, window);
        let width = window.width().max(1) as usize;
        for (row, values) in window.rows.clone().zip(values.chunks_mut(width)) {
            let of_row = loaded.row(row);
            for (value, &place) in values.iter_mut().zip(&places) {
                *value = combine(*value, of_row.get(place).copied().unwrap_or(0.0));
            }
        }
        Ok(())
    }

    /// Where the parameter of each column of a window is.
    fn places(&self, loaded: &Loaded, window: &Window) -> Vec<usize> {
        match &self.groups {
            Some(groups) => {
                let groups = groups.get(window.columns.start as usize..window.columns.end as usize);
                groups.unwrap_or_default().iter().map(|&group| group as usize).collect()
            }
            None => window.columns.clone().map(|column| loaded.place(column)).collect(),
        }
    }
}
