//! The calibration table: read, checked, and merged where it has several rows of one layer and timestep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Calibration, Histogram, LayerState, LayerStatistics, StepStatistics, imatrix};
use crate::{QuantError, Result};

/// Rows of one layer and state: timestep, batch and what was measured.
type Rows = BTreeMap<LayerState, Vec<(i64, i64, StepStatistics)>>;

/// Reads a file.
pub(super) fn open(path: &Path, samples: i64) -> Result<Calibration> {
    // A file that is not there is told apart from one that cannot be understood.
    std::fs::metadata(path).map_err(|e| QuantError::io(path, e))?;
    let name = path.display().to_string();
    let unreadable = |message: String| QuantError::defect(path, None, format!("not a calibration table: {message}"));
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let open = || std::fs::File::open(path).map_err(|e| QuantError::io(path, e));
    match extension.to_str() {
        Some("arrow" | "ipc" | "feather") => {
            let reader =
                arrow::ipc::reader::FileReader::try_new(open()?, None).map_err(|e| unreadable(e.to_string()))?;
            collect(&name, reader.map(|batch| batch.map_err(|e| unreadable(e.to_string()))), samples)
        }
        Some("parquet") => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(open()?).and_then(|builder| builder.build());
            let batches = reader.map_err(|e| unreadable(e.to_string()))?;
            collect(&name, batches.map(|batch| batch.map_err(|e| unreadable(e.to_string()))), samples)
        }
        Some(other) if imatrix::ENDINGS.contains(&other) => {
            Ok(Calibration { name, path: None, layers: Vec::new(), powers: imatrix::open(path)? })
        }
        _ => {
            let allowed = "allowed: names that end with .parquet or .arrow, and importance matrices of llama.cpp, .gguf, .imatrix \
                           or .dat";
            Err(unreadable(allowed.to_string()))
        }
    }
}

/// Reads batches one after the other, so that but one is held beside what was read.
fn collect(name: &str, batches: impl Iterator<Item = Result<RecordBatch>>, samples: i64) -> Result<Calibration> {
    let mut rows = Rows::new();
    for batch in batches {
        let batch = batch?;
        let columns = Columns::of(name, &batch)?;
        for row in 0..batch.num_rows() {
            let (key, entry) = columns.row(name, row)?;
            rows.entry(key).or_default().push(entry);
        }
    }
    if rows.is_empty() {
        return Err(refused(name, None, "it has no rows".to_string()));
    }
    let merge = |((tensor, state), rows): (LayerState, _)| layer(name, tensor, state, rows, samples);
    let layers = rows.into_iter().map(merge).collect::<Result<Vec<_>>>()?;
    refuse_gaps(name, &layers)?;
    Ok(Calibration { name: name.to_string(), path: None, layers, powers: Vec::new() })
}

impl Calibration {
    /// A calibration table in memory; `name` is for messages, and at most `samples` of each layer and timestep are used.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_batches(name: &str, batches: &[RecordBatch], samples: i64) -> Result<Self> {
        collect(name, batches.iter().cloned().map(Ok), samples)
    }
}

fn refused(name: &str, tensor: Option<&str>, what: String) -> QuantError {
    QuantError::defect(Path::new(name), tensor.map(str::to_string), what)
}

/// The columns of a batch, in the types that are worked with.
struct Columns {
    tensor: StringArray,
    timestep: Int64Array,
    state: Option<StringArray>,
    batch: Option<Int64Array>,
    samples: Int64Array,
    min: ArrayRef,
    max: ArrayRef,
    mean_square: ArrayRef,
    histogram: Option<[ArrayRef; 3]>,
}

impl Columns {
    fn of(name: &str, batch: &RecordBatch) -> Result<Self> {
        let list = DataType::List(Field::new("item", DataType::Float32, true).into());
        let doubles = DataType::List(Field::new("item", DataType::Float64, true).into());
        let optional = |column: &str, wanted: &DataType| -> Result<Option<ArrayRef>> {
            let Some(found) = batch.column_by_name(column) else { return Ok(None) };
            let fits = cast(found, wanted).map_err(|_| {
                refused(name, None, format!("the column {column} is {}, expected {wanted}", found.data_type()))
            })?;
            // What a cast cannot hold becomes NULL.
            if fits.null_count() > found.null_count() {
                return Err(refused(name, None, format!("the column {column} has values that are no {wanted}")));
            }
            Ok(Some(fits))
        };
        let needed = |column: &str, wanted: &DataType| -> Result<ArrayRef> {
            let expected = "expected tensor, timestep, samples, channel_min, channel_max and channel_mean_square";
            let found = optional(column, wanted)?
                .ok_or_else(|| refused(name, None, format!("it has no column {column}; {expected}")))?;
            if found.null_count() > 0 {
                return Err(refused(name, None, format!("the column {column} has NULLs, expected none")));
            }
            Ok(found)
        };
        let histogram = match optional("histogram", &doubles)? {
            Some(counts) => Some([
                counts,
                needed("histogram_min", &DataType::Float32)?,
                needed("histogram_max", &DataType::Float32)?,
            ]),
            None => None,
        };
        Ok(Self {
            tensor: needed("tensor", &DataType::Utf8)?.as_string().clone(),
            timestep: whole(name, "timestep", needed("timestep", &DataType::Float64)?.as_primitive())?,
            state: optional("state", &DataType::Utf8)?.map(|state| state.as_string().clone()),
            batch: optional("batch", &DataType::Float64)?
                .map(|batch| whole(name, "batch", batch.as_primitive()))
                .transpose()?,
            samples: whole(name, "samples", needed("samples", &DataType::Float64)?.as_primitive())?,
            min: needed("channel_min", &list)?,
            max: needed("channel_max", &list)?,
            mean_square: needed("channel_mean_square", &list)?,
            histogram,
        })
    }

    /// A row: tensor and state, and timestep, batch and statistics.
    fn row(&self, name: &str, row: usize) -> Result<(LayerState, (i64, i64, StepStatistics))> {
        let (tensor, timestep) = (self.tensor.value(row), self.timestep.value(row));
        let step = StepStatistics {
            timestep,
            samples: self.samples.value(row),
            min: floats(&self.min, row),
            max: floats(&self.max, row),
            mean_square: floats(&self.mean_square, row),
            histogram: self.histogram.as_ref().and_then(|columns| histogram(columns, row)),
        };
        check(&step).map_err(|what| refused(name, Some(tensor), format!("timestep {timestep}: {what}")))?;
        let text = |column: &Option<StringArray>| {
            column
                .as_ref()
                .filter(|column| column.is_valid(row))
                .map_or_else(String::new, |column| column.value(row).to_string())
        };
        let batch = self.batch.as_ref().filter(|batch| batch.is_valid(row)).map_or(0, |batch| batch.value(row));
        Ok(((tensor.to_string(), text(&self.state)), (timestep, batch, step)))
    }
}

/// Checks what a row holds.
///
/// # Errors
/// What is wrong with it.
fn check(step: &StepStatistics) -> Result<(), String> {
    if step.timestep < 0 || step.samples < 1 {
        let (field, found) = if step.timestep < 0 { ("timestep", step.timestep) } else { ("samples", step.samples) };
        return Err(format!("{field} is {found}, allowed: {} or more", i64::from(field == "samples")));
    }
    let channels = step.min.len();
    if channels == 0 || step.max.len() != channels || step.mean_square.len() != channels {
        let found = [channels, step.max.len(), step.mean_square.len()];
        return Err(format!(
            "channel_min, channel_max and channel_mean_square have {found:?} entries, expected one a channel"
        ));
    }
    for (column, values) in
        [("channel_min", &step.min), ("channel_max", &step.max), ("channel_mean_square", &step.mean_square)]
    {
        if let Some(channel) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("{column} of channel {channel} is {}, expected a number", values[channel]));
        }
    }
    for channel in 0..channels {
        check_channel(step, channel)?;
    }
    step.histogram.as_ref().map_or(Ok(()), |histogram| check_histogram(step, histogram))
}

/// Checks that minimum, maximum and mean square of a channel can be of the same values.
fn check_channel(step: &StepStatistics, channel: usize) -> Result<(), String> {
    let (min, max, square) = (step.min[channel], step.max[channel], step.mean_square[channel]);
    let greatest = f64::from(min.abs().max(max.abs())).powi(2);
    let least = if min > 0.0 || max < 0.0 { f64::from(min.abs().min(max.abs())).powi(2) } else { 0.0 };
    // Means of squares are of as many values as there were, so they lie between the least square and the greatest but
    // for rounding.
    let is_mean = f64::from(square) + 1e-30 >= 0.999 * least && f64::from(square) <= 1.001 * greatest + 1e-30;
    if min > max || square < 0.0 || !is_mean {
        let what = format!("channel {channel} has minimum {min}, maximum {max} and mean square {square}");
        return Err(format!("{what}, which contradict each other"));
    }
    Ok(())
}

/// Checks that a histogram has a width and counts, and is of values that the channels have.
fn check_histogram(step: &StepStatistics, histogram: &Histogram) -> Result<(), String> {
    let is_count = |n: &f64| n.is_finite() && *n >= 0.0;
    if !(histogram.width() > 0.0 && histogram.width().is_finite() && histogram.counts.iter().all(is_count)) {
        return Err("its histogram has no width, or counts that are no numbers from 0 on".to_string());
    }
    if !(f64::MIN_POSITIVE..f64::MAX).contains(&histogram.counts.iter().sum()) {
        return Err("its histogram has no sum above 0: leave it NULL where nothing was counted".to_string());
    }
    let low = step.min.iter().copied().fold(f32::INFINITY, f32::min);
    let high = step.max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let beyond = (f64::from(histogram.min) - f64::from(low)).max(f64::from(high) - f64::from(histogram.max));
    if beyond > histogram.width() {
        let [from, to] = [histogram.min, histogram.max];
        return Err(format!("its histogram is of values from {from} to {to}, its channels have {low} to {high}"));
    }
    Ok(())
}

/// Whole numbers, whatever their type.
fn whole(name: &str, column: &str, numbers: &Float64Array) -> Result<Int64Array> {
    const MOST: f64 = 1e12;
    match numbers.iter().flatten().find(|number| number.fract() != 0.0 || number.abs() > MOST) {
        Some(number) => {
            Err(refused(name, None, format!("{column} is {number}, allowed: whole numbers from 0 to {MOST:e}")))
        }
        None => Ok(numbers.iter().map(|number| number.map(|number| number as i64)).collect()),
    }
}

/// A list of a row; NULLs in it are NaN.
fn floats(lists: &ArrayRef, row: usize) -> Vec<f32> {
    let list = lists.as_list::<i32>().value(row);
    let list: &Float32Array = list.as_primitive::<Float32Type>();
    list.iter().map(|value| value.unwrap_or(f32::NAN)).collect()
}

fn histogram([counts, min, max]: &[ArrayRef; 3], row: usize) -> Option<Histogram> {
    if counts.is_null(row) {
        return None;
    }
    let list = counts.as_list::<i32>().value(row);
    let list: &Float64Array = list.as_primitive();
    let counts: Vec<f64> = list.iter().map(|count| count.unwrap_or(f64::NAN)).collect();
    let bound = |column: &ArrayRef| column.as_primitive::<Float32Type>().value(row);
    (!counts.is_empty()).then(|| Histogram { min: bound(min), max: bound(max), counts })
}

/// The statistics of a layer, with batches of one timestep merged, in their order, until there are enough samples.
fn layer(
    name: &str,
    tensor: String,
    state: String,
    mut rows: Vec<(i64, i64, StepStatistics)>,
    samples: i64,
) -> Result<LayerStatistics> {
    rows.sort_by_key(|(timestep, batch, _)| (*timestep, *batch));
    let mut steps: Vec<StepStatistics> = Vec::new();
    let mut last = None;
    for (timestep, batch, row) in rows {
        let refuse = |what: String| Err(refused(name, Some(&tensor), format!("timestep {timestep}{what}")));
        if last == Some((timestep, batch)) {
            return refuse(" is there twice, expected once; partial measurements need a column batch".to_string());
        }
        last = Some((timestep, batch));
        if let Some(first) = steps.first()
            && first.min.len() != row.min.len()
        {
            return refuse(format!(
                " has {} channels, timestep {} has {}",
                row.min.len(),
                first.timestep,
                first.min.len()
            ));
        }
        match steps.last_mut().filter(|step| step.timestep == timestep) {
            Some(step) if step.samples >= samples => {}
            Some(step) => step.merge(&row),
            None => steps.push(row),
        }
    }
    Ok(LayerStatistics { tensor, state, steps })
}

/// Every layer must have been measured at every timestep, in each of its states, with as many channels in each.
fn refuse_gaps(name: &str, layers: &[LayerStatistics]) -> Result<()> {
    for pair in layers.windows(2).filter(|pair| pair[0].tensor == pair[1].tensor) {
        let [one, other] = [&pair[0], &pair[1]].map(LayerStatistics::channels);
        if one != other {
            let what =
                format!("it has {other} channels in the state '{}', {one} in '{}'", pair[1].state, pair[0].state);
            return Err(refused(name, Some(&pair[1].tensor), what));
        }
    }
    let timesteps = |layer: &LayerStatistics| layer.steps.iter().map(|step| step.timestep).collect::<BTreeSet<_>>();
    let of_state = |layer: &LayerStatistics| match layer.state.as_str() {
        "" => String::new(),
        state => format!(" in the state '{state}'"),
    };
    let mut all: BTreeMap<i64, &LayerStatistics> = BTreeMap::new();
    for layer in layers {
        for step in &layer.steps {
            all.entry(step.timestep).or_insert(layer);
        }
    }
    for layer in layers.iter().filter(|layer| layer.steps.len() < all.len()) {
        let found = timesteps(layer);
        if let Some((timestep, other)) = all.iter().find(|(timestep, _)| !found.contains(timestep)) {
            let (here, there) = (of_state(layer), format!("{}{}", other.tensor, of_state(other)));
            let what = format!(
                "timestep {timestep} is missing{here}, which {there} has: measure all layers at the same timesteps"
            );
            return Err(refused(name, Some(&layer.tensor), what));
        }
    }
    Ok(())
}

impl StepStatistics {
    /// Adds what another batch of the same timestep gave.
    fn merge(&mut self, other: &Self) {
        let (ours, theirs) = (self.samples as f64, other.samples as f64);
        for (channel, square) in self.mean_square.iter_mut().enumerate() {
            self.min[channel] = self.min[channel].min(other.min[channel]);
            self.max[channel] = self.max[channel].max(other.max[channel]);
            let sum = f64::from(*square) * ours + f64::from(other.mean_square[channel]) * theirs;
            *square = (sum / (ours + theirs)) as f32;
        }
        self.histogram = match (self.histogram.take(), &other.histogram) {
            (Some(a), Some(b)) => Some(Histogram::merged([&a, b])),
            _ => None,
        };
        self.samples += other.samples;
    }
}

impl Histogram {
    /// The counts of several histograms in one, with bins as many as the most of them has; what lies across bins is shared
    /// among them.
    pub(crate) fn merged<'a>(histograms: impl IntoIterator<Item = &'a Self>) -> Self {
        /// Bins of another histogram that are narrower than this part of ours lie in one of ours.
        const NARROW: f64 = 1e-9;
        let histograms: Vec<&Self> = histograms.into_iter().collect();
        let min = histograms.iter().map(|h| h.min).fold(f32::INFINITY, f32::min);
        let max = histograms.iter().map(|h| h.max).fold(f32::NEG_INFINITY, f32::max);
        let bins = histograms.iter().map(|h| h.counts.len()).max().unwrap_or(1);
        let mut counts = vec![0.0; bins];
        let width = (f64::from(max) - f64::from(min)) / bins as f64;
        for histogram in histograms {
            let own = histogram.width();
            for (bin, &count) in histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
                let from = (f64::from(histogram.min) + own * bin as f64 - f64::from(min)) / width;
                let to = from + own / width;
                if to - from < NARROW {
                    // Its share of a bin is too little to tell from nothing.
                    counts[(from as usize).min(bins - 1)] += count;
                    continue;
                }
                for (at, sum) in counts.iter_mut().enumerate().take(to.ceil() as usize).skip(from.floor() as usize) {
                    *sum += count * (to.min(at as f64 + 1.0) - from.max(at as f64)).max(0.0) / (to - from);
                }
            }
        }
        Self { min, max, counts }
    }

    /// The width of a bin.
    pub(crate) fn width(&self) -> f64 {
        (f64::from(self.max) - f64::from(self.min)) / self.counts.len() as f64
    }
}
