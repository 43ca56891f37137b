use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Builder, Int64Array, ListBuilder, RecordBatch, StringArray};

use super::activations::{COARSE, Losses};
use super::groups::{finest_groups, time_groups};
use super::inputs::{ChannelWeights, Inputs};
use super::{Calibration, Grouping, Histogram, LayerStatistics, StepStatistics};
use crate::config::Boundaries;

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
            "c: tensor 'b': timestep 5 is missing, which a has",
        ),
        (vec![row("a", 0, 0, &two), row("a", 0, 0, &two)], "c: tensor 'a': timestep 0 is there twice"),
        (
            vec![row("a", 0, 0, &two), row("a", 5, 0, &two[..1])],
            "c: tensor 'a': timestep 5 has 1 channels, timestep 0 has 2",
        ),
        (
            vec![row("a", 0, 0, &[])],
            "c: tensor 'a': timestep 0: channel_min, channel_max and channel_mean_square have [0, 0, 0] entries",
        ),
        (
            vec![row("a", 3, 0, &[CHANNEL, [-1.0, f32::NAN, 0.5]])],
            "c: tensor 'a': timestep 3: channel_max of channel 1 is NaN",
        ),
        (vec![row("a", 3, 0, &[[1.0, -1.0, 0.5]])], "c: tensor 'a': timestep 3: channel 0 has minimum 1, maximum -1"),
        (
            vec![row("a", 3, 0, &[[-1.0, 1.0, 2.0]])],
            "c: tensor 'a': timestep 3: channel 0 has minimum -1, maximum 1 and mean square 2",
        ),
        (
            vec![row("a", 3, 0, &[[1.0, 2.0, 0.5]])],
            "c: tensor 'a': timestep 3: channel 0 has minimum 1, maximum 2 and mean square 0.5",
        ),
        (vec![row("a", -1, 0, &[CHANNEL])], "c: tensor 'a': timestep -1: timestep is -1, allowed: 0 or more"),
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

/// Standard normal values: Box and Muller's, of SplitMix64's numbers.
struct Normal(u64);

impl Normal {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Values whose width grows eightfold over 100 timesteps, and the statistics of a layer that gets them.
fn drift(seed: u64) -> (Vec<Vec<f64>>, LayerStatistics) {
    const SAMPLES: usize = 2048;
    const BINS: usize = 2048;
    let mut normal = Normal(seed);
    let mut draw = |t: usize| (0..SAMPLES).map(|_| normal.next() * 8f64.powf(t as f64 / 99.0)).collect::<Vec<f64>>();
    let values: Vec<Vec<f64>> = (0..100).map(&mut draw).collect();
    let most = values.iter().flatten().fold(0.0f64, |most, x| most.max(x.abs())) as f32;
    let step = |(t, values): (usize, &Vec<f64>)| {
        let mut counts = vec![0.0; BINS];
        for x in values {
            let bin = ((x / f64::from(most) + 1.0) / 2.0 * BINS as f64) as usize;
            counts[bin.min(BINS - 1)] += 1.0;
        }
        StepStatistics {
            timestep: t as i64,
            samples: SAMPLES as i64,
            min: vec![values.iter().copied().fold(f64::INFINITY, f64::min) as f32],
            max: vec![values.iter().copied().fold(f64::NEG_INFINITY, f64::max) as f32],
            mean_square: vec![(values.iter().map(|x| x * x).sum::<f64>() / SAMPLES as f64) as f32],
            histogram: Some(Histogram { min: -most, max: most, counts }),
        }
    };
    let steps = values.iter().enumerate().map(step).collect();
    (values, LayerStatistics { tensor: "w".to_string(), state: String::new(), steps })
}

/// The SQNR of each timestep's values after they were quantized: the mean and the least, in dB.
fn quantized(values: &[Vec<f64>], layer: &LayerStatistics, most: usize, boundaries: Boundaries) -> [f64; 2] {
    let channels = ChannelWeights { parts: &[1.0], divisors: None };
    let inputs = Inputs::new(layer, &channels, Grouping { most, boundaries });
    let mut db = Vec::new();
    for (t, values) in values.iter().enumerate() {
        let group = inputs.groups.iter().find(|group| group.timesteps.contains(&(t as i64))).unwrap();
        let (scale, zero) = (group.parameters.scale, f64::from(group.parameters.zero_point));
        let restored = |x: f64| scale * (((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero);
        let noise: f64 = values.iter().map(|&x| (x - restored(x)).powi(2)).sum();
        db.push(10.0 * (values.iter().map(|x| x * x).sum::<f64>() / noise).log10());
    }
    [db.iter().sum::<f64>() / db.len() as f64, db.iter().copied().fold(f64::INFINITY, f64::min)]
}

#[test]
fn groups_gain_what_they_should_where_the_range_drifts_eightfold() {
    for seed in [1, 2] {
        let (values, layer) = drift(seed);
        let [mean, worst] = quantized(&values, &layer, 1, Boundaries::Optimal);
        let [mean_of_10, worst_of_10] = quantized(&values, &layer, 10, Boundaries::Optimal);
        assert!(mean_of_10 - mean >= 6.5, "{mean_of_10} {mean}");
        assert!(worst_of_10 - worst >= 12.0, "{worst_of_10} {worst}");
    }
}

/// Layers of many shapes: ranges that drift, jump and wander, by the number of timesteps and a seed.
fn wandering(steps: usize, seed: u64) -> LayerStatistics {
    let mut random = Normal(seed);
    let mut width = 1.0f64;
    let step = |t: usize| {
        width *= (0.2 * random.next()).exp() * if random.uniform() < 0.03 { 4.0 } else { 1.0 };
        width = width.clamp(0.05, 20.0);
        let (low, high) = (-width * (1.0 + random.uniform()), width * (1.0 + 2.0 * random.uniform()));
        StepStatistics {
            timestep: t as i64,
            samples: 256,
            min: vec![low as f32],
            max: vec![high as f32],
            mean_square: vec![(0.2 * width * width) as f32],
            histogram: None,
        }
    };
    LayerStatistics { tensor: "w".to_string(), state: String::new(), steps: (0..steps).map(step).collect() }
}

#[test]
fn optimal_groups_are_nowhere_worse_than_equal_ones() {
    for (steps, seed) in [(7, 1), (25, 2), (25, 3), (40, 4), (40, 5), (200, 6)] {
        let losses = Losses::new(&wandering(steps, seed).steps, &[1.0], None, COARSE);
        for groups in [2, 3, 4, 6, 10] {
            let [equal, optimal] =
                [Boundaries::Equal, Boundaries::Optimal].map(|boundaries| finest_groups(&losses, groups, boundaries));
            let fewer = time_groups(&losses, groups, Boundaries::Optimal);
            assert!(fewer.runs.len() <= optimal.runs.len(), "{steps} {seed} {groups}");
            for found in [optimal, fewer] {
                assert!(found.mean_db <= equal.mean_db + 1e-9, "{steps} {seed} {groups}");
                assert!(found.worst_db <= equal.worst_db + 1e-9, "{steps} {seed} {groups}");
                assert!(found.worst_noise_db <= equal.worst_noise_db + 1e-9, "{steps} {seed} {groups}");
            }
        }
    }
}

#[test]
fn equal_groups_are_equal_however_many_timesteps_there_are() {
    for (steps, groups) in [(1000, 10), (1000, 100), (300, 7), (25, 10), (3, 10)] {
        let losses = Losses::new(&wandering(steps, 1).steps, &[1.0], None, 4);
        let found = time_groups(&losses, groups, Boundaries::Equal);
        let lengths: Vec<usize> = found.runs.iter().map(|(run, _)| run.len()).collect();
        assert_eq!((lengths.len(), lengths.iter().sum()), (groups.min(steps), steps));
        let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
        assert!(most - least <= 1, "{lengths:?}");
    }
}

#[test]
fn narrow_timesteps_are_told_apart_where_the_range_drifts_a_lot() {
    let step = |t: i64| {
        let width = 32f32.powf(t as f32 / 15.0);
        let (min, max, mean_square) = (vec![-3.0 * width], vec![3.0 * width], vec![width * width]);
        StepStatistics { timestep: t, samples: 512, min, max, mean_square, histogram: None }
    };
    let layer = LayerStatistics { tensor: "w".to_string(), state: String::new(), steps: (0..16).map(step).collect() };
    let channels = ChannelWeights { parts: &[1.0], divisors: None };
    let inputs = Inputs::new(&layer, &channels, Grouping { most: 16, boundaries: Boundaries::Optimal });
    // With bounds of its own each timestep has about 41 dB.
    assert!(inputs.sqnr_db.iter().all(|db| *db > 38.0), "{:?}", inputs.sqnr_db);
}

#[test]
fn states_of_a_layer_have_as_many_channels_each() {
    let rows = [("a", 0, 0, 8, vec![CHANNEL]), ("a", 0, 0, 8, vec![CHANNEL, CHANNEL])];
    let [one, other] = rows.map(|row| table(&[row]));
    let with_state = |batch: &RecordBatch, state: &str| {
        let states = Arc::new(StringArray::from(vec![state])) as ArrayRef;
        let schema = batch.schema();
        let columns = schema.fields().iter().map(|f| f.name().clone()).zip(batch.columns().iter().cloned());
        RecordBatch::try_from_iter(columns.chain([("state".to_string(), states)])).unwrap()
    };
    let batches = [with_state(&one, "masked"), with_state(&other, "open")];
    let error = Calibration::from_batches("c", &batches, 100).unwrap_err().to_string();
    assert_eq!(error, "c: tensor 'a': it has 2 channels in the state 'open', 1 in 'masked'");
}

#[test]
fn a_histogram_that_tells_nothing_or_of_other_values_is_refused() {
    use arrow::array::{Float32Array, Float64Builder};
    let error = |counts: &[f64], min: f32, max: f32| {
        let batch = table(&[("a", 0, 0, 8, vec![CHANNEL])]);
        let mut lists = ListBuilder::new(Float64Builder::new());
        lists.append_value(counts.iter().map(|n| Some(*n)));
        let schema = batch.schema();
        let columns = schema.fields().iter().map(|f| f.name().clone()).zip(batch.columns().iter().cloned());
        let float = |x: f32| Arc::new(Float32Array::from(vec![x])) as ArrayRef;
        let more = [
            ("histogram".to_string(), Arc::new(lists.finish()) as ArrayRef),
            ("histogram_min".to_string(), float(min)),
            ("histogram_max".to_string(), float(max)),
        ];
        let batch = RecordBatch::try_from_iter(columns.chain(more)).unwrap();
        Calibration::from_batches("c", &[batch], 100).map_or_else(|error| error.to_string(), |_| String::new())
    };
    let counts = [1.0, 4.0, 3.0];
    assert_eq!(error(&counts, -1.0, 2.0), "");
    assert!(error(&counts, -0.5, 0.5).contains("of values from -0.5 to 0.5, its channels have -1 to 2"));
    assert!(error(&[0.0; 3], -1.0, 2.0).contains("its histogram has no sum above 0"));
    for (min, max) in [(f32::NAN, 2.0), (-1.0, f32::INFINITY), (2.0, -1.0), (f32::NEG_INFINITY, f32::INFINITY)] {
        assert!(error(&counts, min, max).contains("no width"), "{min} {max}");
    }
}
