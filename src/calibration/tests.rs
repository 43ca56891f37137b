use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Builder, Int64Array, ListBuilder, RecordBatch, StringArray};

use super::{Calibration, Histogram};

/// One row: tensor, timestep, batch, samples, and minimum, maximum and mean square of each channel.
pub(super) type Row<'a> = (&'a str, i64, i64, i64, Vec<[f32; 3]>);

pub(super) fn table(rows: &[Row<'_>]) -> RecordBatch {
    let lists = |at: usize| {
        let mut lists = ListBuilder::new(Float32Builder::new());
        for row in rows {
            lists.append_value(row.4.iter().map(|channel| Some(channel[at])));
        }
        Arc::new(lists.finish()) as ArrayRef
    };
    let numbers = |of: fn(&Row<'_>) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    RecordBatch::try_from_iter([
        ("tensor", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef),
        ("timestep", numbers(|row| row.1)),
        ("batch", numbers(|row| row.2)),
        ("samples", numbers(|row| row.3)),
        ("channel_min", lists(0)),
        ("channel_max", lists(1)),
        ("channel_mean_square", lists(2)),
    ])
    .unwrap()
}

fn read(rows: &[Row<'_>]) -> Result<Calibration, String> {
    Calibration::from_batches("c", &[table(rows)], 100).map_err(|error| error.to_string())
}

const CHANNEL: [f32; 3] = [-1.0, 2.0, 0.5];

#[test]
fn a_wrong_table_is_refused_by_tensor_and_timestep() {
    let row = |tensor, timestep, batch, channels: &[[f32; 3]]| (tensor, timestep, batch, 8, channels.to_vec());
    let two = [CHANNEL, CHANNEL];
    for (rows, said) in [
        (
            vec![row("a", 0, 0, &two), row("a", 5, 0, &two), row("b", 0, 0, &two)],
            "c: b: timestep 5 is missing, which a has",
        ),
        (vec![row("a", 0, 0, &two), row("a", 0, 0, &two)], "c: a: timestep 0 is there twice"),
        (vec![row("a", 0, 0, &two), row("a", 5, 0, &two[..1])], "c: a: timestep 5 has 1 channels, timestep 0 has 2"),
        (
            vec![row("a", 0, 0, &[])],
            "c: a: timestep 0: channel_min, channel_max and channel_mean_square have [0, 0, 0] entries",
        ),
        (vec![row("a", 3, 0, &[CHANNEL, [-1.0, f32::NAN, 0.5]])], "c: a: timestep 3: channel_max of channel 1 is NaN"),
        (vec![row("a", 3, 0, &[[1.0, -1.0, 0.5]])], "c: a: timestep 3: channel 0 has minimum 1, maximum -1"),
        (
            vec![row("a", 3, 0, &[[-1.0, 1.0, 2.0]])],
            "c: a: timestep 3: channel 0 has minimum -1, maximum 1 and mean square 2",
        ),
        (vec![row("a", -1, 0, &[CHANNEL])], "c: a: timestep -1: timestep is -1, allowed: 0 or more"),
        (vec![], "c: it has no rows"),
    ] {
        let error = read(&rows).unwrap_err();
        assert!(error.starts_with(said), "{error}");
    }
    let lacking = table(&[row("a", 0, 0, &two)]).project(&[0, 1, 2, 3, 4, 5]).unwrap();
    let error = Calibration::from_batches("c", &[lacking], 100).unwrap_err().to_string();
    assert!(error.starts_with("c: it has no column channel_mean_square; expected tensor, timestep"), "{error}");
}

#[test]
fn batches_are_merged_until_there_are_enough_samples() {
    let rows = [
        ("a", 7, 1, 30, vec![[-3.0, 1.0, 1.0]]),
        ("a", 7, 0, 90, vec![[-1.0, 2.0, 0.2]]),
        ("a", 7, 2, 10, vec![[-9.0, 9.0, 50.0]]),
    ];
    let calibration = read(&rows).unwrap();
    let [step] = calibration.layers[0].steps.as_slice() else { panic!("one timestep") };
    // 90 are not enough, 120 are: the third is left out.
    assert_eq!((step.samples, step.min[0], step.max[0]), (120, -3.0, 2.0));
    assert!((step.mean_square[0] - 0.4).abs() < 1e-6);
}

#[test]
fn histograms_keep_their_counts_when_they_are_merged() {
    let narrow = Histogram { min: -1.0, max: 1.0, counts: vec![1.0, 3.0, 3.0, 1.0] };
    let wide = Histogram { min: -4.0, max: 4.0, counts: vec![2.0, 4.0, 4.0, 2.0] };
    let both = Histogram::merged([&narrow, &wide]);
    assert_eq!((both.min, both.max), (-4.0, 4.0));
    assert_eq!(both.counts, [2.0, 8.0, 8.0, 2.0]);
    assert_eq!(Histogram::merged([&narrow]), narrow);
}
