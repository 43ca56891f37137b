//! The parameters of activations as a table: one row for each layer, state and time group.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::activations::{BITS, Losses};
use super::groups::{Groups, time_groups};
use super::{Calibration, LayerStatistics, StepStatistics};
use crate::Result;

/// The columns.
pub(crate) fn activation_schema() -> SchemaRef {
    let column = |name, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        column("tensor", DataType::Utf8),
        column("state", DataType::Utf8),
        column("time_group", DataType::Int32),
        column("t_start", DataType::Int64),
        column("t_end", DataType::Int64),
        column("timesteps", DataType::Int64),
        column("bits", DataType::Int32),
        column("scale", DataType::Float64),
        column("zero_point", DataType::Int32),
        column("clip", DataType::Float64),
        column("sqnr_db", DataType::Float64),
        column("loss_db", DataType::Float64),
        column("worst_loss_db", DataType::Float64),
    ]))
}

/// One row of it.
struct Row<'a> {
    layer: &'a LayerStatistics,
    time_group: i32,
    /// From the first timestep to before the end.
    timesteps: Range<i64>,
    measured: i64,
    scale: f64,
    zero_point: i32,
    clip: f64,
    sqnr_db: f64,
    loss_db: f64,
    worst_loss_db: f64,
}

impl Calibration {
    /// For each layer and state at most so many groups of timesteps, with the parameters that its inputs are quantized by:
    /// `x' = scale * (clamp(round(x / scale) + zero_point, 0, 2^bits - 1) - zero_point)` for `t_start <= t < t_end`.
    pub(crate) fn activations(&self, groups: usize) -> Result<RecordBatch> {
        let rows: Vec<Row<'_>> = self.layers.iter().flat_map(|layer| rows(layer, groups)).collect();
        let text = |of: for<'a> fn(&'a Row<'_>) -> &'a str| {
            Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef
        };
        let long = |of: fn(&Row<'_>) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
        let int = |of: fn(&Row<'_>) -> i32| Arc::new(Int32Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
        let float = |of: fn(&Row<'_>) -> f64| Arc::new(Float64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
        let columns = vec![
            text(|row| &row.layer.tensor),
            text(|row| &row.layer.state),
            int(|row| row.time_group),
            long(|row| row.timesteps.start),
            long(|row| row.timesteps.end),
            long(|row| row.measured),
            int(|_| BITS as i32),
            float(|row| row.scale),
            int(|row| row.zero_point),
            float(|row| row.clip),
            float(|row| row.sqnr_db),
            float(|row| row.loss_db),
            float(|row| row.worst_loss_db),
        ];
        Ok(RecordBatch::try_new(activation_schema(), columns)?)
    }
}

fn rows(layer: &LayerStatistics, groups: usize) -> Vec<Row<'_>> {
    let channels = layer.steps[0].min.len();
    let losses = Losses::new(&layer.steps, &vec![1.0 / channels as f64; channels], None);
    let groups = time_groups(&losses, groups);
    let timesteps = timesteps(&layer.steps, &groups);
    let mut rows = Vec::with_capacity(groups.runs.len());
    for (group, ((steps, bounds), timesteps)) in groups.runs.iter().zip(timesteps).enumerate() {
        let own = |step: usize| losses.at(step, &losses.best(step..step + 1));
        let lost: Vec<f64> = steps.clone().map(|step| losses.at(step, bounds)).collect();
        let ratios: Vec<f64> = steps.clone().zip(&lost).map(|(step, lost)| 10.0 * (lost / own(step)).log10()).collect();
        let squares: f64 = layer.steps[steps.clone()].iter().map(mean_square).sum();
        let (least, greatest) = range(&layer.steps[steps.clone()]);
        let parameters = bounds.parameters();
        rows.push(Row {
            layer,
            time_group: group as i32,
            timesteps,
            measured: steps.len() as i64,
            scale: parameters.scale,
            zero_point: parameters.zero_point,
            clip: if greatest > least { (bounds.high - bounds.low) / (greatest - least) } else { 1.0 },
            sqnr_db: 10.0 * (squares / lost.iter().sum::<f64>()).log10(),
            loss_db: ratios.iter().sum::<f64>() / ratios.len() as f64,
            worst_loss_db: ratios.iter().copied().fold(0.0, f64::max),
        });
    }
    rows
}

fn mean_square(step: &StepStatistics) -> f64 {
    step.mean_square.iter().map(|&square| f64::from(square)).sum::<f64>() / step.mean_square.len() as f64
}

/// The least and the greatest value of some timesteps, with zero among them.
fn range(steps: &[StepStatistics]) -> (f64, f64) {
    let least = steps.iter().flat_map(|step| &step.min).fold(0.0f32, |least, &x| least.min(x));
    let greatest = steps.iter().flat_map(|step| &step.max).fold(0.0f32, |greatest, &x| greatest.max(x));
    (f64::from(least), f64::from(greatest))
}

/// The timesteps of each group, those that were not measured included: the first begins with 0, and the last ends one step
/// width after the last that was measured. What lies between two groups belongs to the one that falls less short of the other's
/// values, for values between are as wide as the wider.
fn timesteps(steps: &[StepStatistics], groups: &Groups) -> Vec<Range<i64>> {
    let mut starts = vec![0];
    for pair in groups.runs.windows(2) {
        let (before, after) = (&steps[pair[0].0.clone()], &steps[pair[1].0.clone()]);
        let (last, first) = (&before[before.len() - 1..], &after[..1]);
        let (short_before, short_after) =
            (shortfall(range(before), range(first)), shortfall(range(after), range(last)));
        let (last, first) = (last[0].timestep, first[0].timestep);
        starts.push(match short_before.total_cmp(&short_after) {
            std::cmp::Ordering::Less => first,
            std::cmp::Ordering::Equal => (last + first + 1) / 2,
            std::cmp::Ordering::Greater => last + 1,
        });
    }
    let last = steps[steps.len() - 1].timestep;
    let width = if steps.len() > 1 { last - steps[steps.len() - 2].timestep } else { 1 };
    let ends = starts[1..].iter().copied().chain([last + width]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// By how much a range falls short of another.
fn shortfall(range: (f64, f64), other: (f64, f64)) -> f64 {
    (range.0 - other.0).max(0.0) + (other.1 - range.1).max(0.0)
}
