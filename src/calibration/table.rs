//! Tables that are made of a calibration: the parameters of activations, with a row for each layer, state and time group;
//! smoothing, and importance.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::activations::BITS;
use super::imatrix::mean_squares;
use super::inputs::{ChannelWeights, Grouping, Inputs, TimeGroup};
use super::smoothing::{Smoothing, importance, relative};
use super::{Calibration, LayerStatistics};
use crate::Result;

/// The columns of the parameters of activations.
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
#[derive(Debug, Clone)]
pub(crate) struct ActivationRow {
    tensor: String,
    state: String,
    /// 0, 1, 2 ... of the layer and state.
    number: i32,
    group: TimeGroup,
}

/// The rows of a layer in one state.
pub(crate) fn activation_rows(layer: &LayerStatistics, inputs: &Inputs) -> Vec<ActivationRow> {
    let row = |(number, group): (usize, &TimeGroup)| ActivationRow {
        tensor: layer.tensor.clone(),
        state: layer.state.clone(),
        number: number as i32,
        group: group.clone(),
    };
    inputs.groups.iter().enumerate().map(row).collect()
}

/// The parameters of activations: `x' = scale * (clamp(round(x / scale) + zero_point, 0, 2^bits - 1) - zero_point)` for
/// `t_start <= t < t_end`.
pub(crate) fn activation_table(rows: &[ActivationRow]) -> Result<RecordBatch> {
    let text = |of: for<'a> fn(&'a ActivationRow) -> &'a str| {
        Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef
    };
    let long = |of: fn(&ActivationRow) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let int = |of: fn(&ActivationRow) -> i32| Arc::new(Int32Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let float = |of: fn(&TimeGroup) -> f64| {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| of(&row.group)))) as ArrayRef
    };
    let columns = vec![
        text(|row| &row.tensor),
        text(|row| &row.state),
        int(|row| row.number),
        long(|row| row.group.timesteps.start),
        long(|row| row.group.timesteps.end),
        long(|row| row.group.measured as i64),
        int(|_| BITS as i32),
        float(|group| group.parameters.scale),
        int(|row| row.group.parameters.zero_point),
        float(|group| group.clip),
        float(|group| group.sqnr_db),
        float(|group| group.loss_db),
        float(|group| group.worst_loss_db),
    ];
    Ok(RecordBatch::try_new(activation_schema(), columns)?)
}

/// Smoothing: what each input channel of a layer is divided by, and its weights multiplied with.
pub(crate) fn smoothing_table(layers: &[(&str, &Smoothing)]) -> Result<RecordBatch> {
    let tensors = StringArray::from_iter_values(layers.iter().map(|(tensor, _)| tensor));
    let alphas = Float64Array::from_iter_values(layers.iter().map(|(_, smoothing)| smoothing.alpha));
    let factors = lists(layers.iter().map(|(_, smoothing)| smoothing.factors.as_slice()));
    Ok(RecordBatch::try_from_iter([
        ("tensor", Arc::new(tensors) as ArrayRef),
        ("alpha", Arc::new(alphas)),
        ("smooth", factors),
    ])?)
}

fn lists<'a>(lists: impl Iterator<Item = &'a [f32]>) -> ArrayRef {
    let mut builder =
        ListBuilder::new(Float32Builder::new()).with_field(Field::new_list_field(DataType::Float32, false));
    for list in lists {
        builder.values().append_slice(list);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

impl Calibration {
    /// For each layer and state time groups with the parameters that its inputs are quantized by, nothing being known of its
    /// weights.
    ///
    /// # Errors
    /// If it is an importance matrix.
    pub(crate) fn activations(&self, grouping: Grouping) -> Result<RecordBatch> {
        self.refuse_imatrix()?;
        let rows = self.layers.iter().flat_map(|layer| {
            let channels = layer.channels();
            let parts = vec![1.0 / channels as f64; channels];
            activation_rows(layer, &Inputs::new(layer, &ChannelWeights { parts: &parts, divisors: None }, grouping))
        });
        activation_table(&rows.collect::<Vec<_>>())
    }

    /// The importance of each input channel of each layer.
    pub(crate) fn importance(&self) -> Result<RecordBatch> {
        let (mut tensors, mut all) = (Vec::new(), Vec::new());
        for states in self.by_tensor() {
            tensors.push(states[0].tensor.as_str());
            all.push(importance(states, None));
        }
        for power in &self.powers {
            tensors.push(power.name.as_str());
            all.push(relative(&mean_squares(power, None)));
        }
        Ok(RecordBatch::try_from_iter([
            ("tensor", Arc::new(StringArray::from(tensors)) as ArrayRef),
            ("importance", lists(all.iter().map(Vec::as_slice))),
        ])?)
    }
}
