//! Files of second moments: written here, read as jobs read them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use parquet::arrow::ArrowWriter;

use super::moments::{Moments, beside};
use super::tests::table;

/// A row: input, tensors, timestep, samples, channels, first channel and channels of the block, and its upper triangle.
pub(crate) type MomentRow<'a> = (&'a str, &'a [&'a str], i64, i64, i32, i32, i32, Vec<f32>);

/// Writes a file of second moments. Each row is a row group.
pub(crate) fn write_moments(path: &Path, rows: &[MomentRow<'_>]) {
    let batches: Vec<RecordBatch> = rows.iter().map(|row| batch(std::slice::from_ref(row))).collect();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    for batch in batches {
        writer.write(&batch).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

fn batch(rows: &[MomentRow<'_>]) -> RecordBatch {
    let (mut tensors, mut grams) = (ListBuilder::new(StringBuilder::new()), ListBuilder::new(Float32Builder::new()));
    for row in rows {
        tensors.append_value(row.1.iter().map(Some));
        grams.append_value(row.7.iter().map(|sum| Some(*sum)));
    }
    let long = |of: fn(&MomentRow<'_>) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let int = |of: fn(&MomentRow<'_>) -> i32| Arc::new(Int32Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    RecordBatch::try_from_iter([
        ("input", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef),
        ("tensors", Arc::new(tensors.finish())),
        ("timestep", long(|row| row.2)),
        ("samples", long(|row| row.3)),
        ("channels", int(|row| row.4)),
        ("start", int(|row| row.5)),
        ("size", int(|row| row.6)),
        ("gram", Arc::new(grams.finish())),
    ])
    .unwrap()
}

/// Writes a calibration table of layers, all of whose channels are alike, and returns where.
pub(crate) fn write_calibration(directory: &Path, layers: &[(&str, usize)]) -> std::path::PathBuf {
    let rows: Vec<_> =
        layers.iter().map(|&(tensor, channels)| (tensor, 0, 0, 8, vec![[-1.0, 2.0, 0.5]; channels])).collect();
    let path = directory.join("calibration.parquet");
    let batch = table(&rows);
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

/// The upper triangle of moments of correlated channels.
pub(crate) fn triangle(size: usize, correlation: f32) -> Vec<f32> {
    let element = |a: usize, b: usize| {
        let scale = |channel: usize| 1.0 + (channel % 5) as f32;
        scale(a) * scale(b) * correlation.powi((b - a) as i32)
    };
    (0..size).flat_map(|a| (a..size).map(move |b| element(a, b))).collect()
}

#[test]
fn moments_are_read_by_input_and_added_over_timesteps() {
    let directory = tempfile::tempdir().unwrap();
    let path = beside(&directory.path().join("calibration.parquet"));
    assert!(path.ends_with("calibration.moments.parquet"));
    let both: &[&str] = &["q", "k"];
    write_moments(
        &path,
        &[
            ("x", both, 0, 10, 3, 0, 2, vec![1.0, 2.0, 3.0]),
            ("y", &["o"], 0, 10, 1, 0, 1, vec![7.0]),
            ("x", both, 0, 10, 3, 2, 1, vec![4.0]),
            ("x", both, 5, 20, 3, 2, 1, vec![40.0]),
            ("x", both, 5, 20, 3, 0, 2, vec![10.0, 20.0, 30.0]),
        ],
    );
    let moments = Moments::open(&path).unwrap();
    let x = moments.input("x").unwrap();
    assert_eq!((x.samples, x.channels, x.blocks.as_slice(), x.tensors.len()), (30, 3, [2, 1].as_slice(), 2));
    let read = format!("{:?}", moments.triangles(x).unwrap());
    assert_eq!(read, "Triangles([(2, [11.0, 22.0, 33.0]), (1, [44.0])])");
    assert_eq!(moments.inputs().len(), 2);
}

#[test]
fn moments_that_contradict_themselves_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.moments.parquet");
    let refused = |rows: &[MomentRow<'_>]| {
        write_moments(&path, rows);
        let error = Moments::open(&path).and_then(|moments| moments.triangles(&moments.inputs()[0]).map(drop));
        let message = error.unwrap_err().to_string();
        message.split_once("parquet: ").unwrap().1.to_string()
    };
    let row = |start, size, gram: &[f32]| ("x", &["w"] as &[&str], 0, 9, 3, start, size, gram.to_vec());
    assert_eq!(refused(&[row(0, 2, &[1.0; 3])]), "the input x has blocks of 2 of its 3 channels");
    let gap = "the input x has a block from channel 2 on at timestep 0, expected one from 1 on";
    assert_eq!(refused(&[row(0, 1, &[1.0]), row(2, 1, &[1.0])]), gap);
    assert!(refused(&[row(1, 3, &[1.0; 6])]).contains("start 1, size 3 and 9 samples, which contradict each other"));
    let mut wide = row(0, 1, &[1.0]);
    wide.4 = 2_000_000;
    assert_eq!(refused(&[wide]), "the input x has 2000000 channels, allowed: 1 to 1048576");
    let mut of_another = row(1, 2, &[1.0; 3]);
    of_another.1 = &["v"];
    let differs = "the input x has other tensors in another row, expected the same in all";
    assert_eq!(refused(&[row(0, 1, &[1.0]), of_another]), differs);
    let short = "x: gram of 3 channels has 5 numbers, expected 6, the upper triangle row by row";
    assert_eq!(refused(&[row(0, 3, &[1.0; 5])]), short);
    let mut other = row(0, 3, &[1.0; 6]);
    (other.2, other.6, other.7) = (1, 1, vec![1.0]);
    assert!(refused(&[row(0, 3, &[1.0; 6]), other]).starts_with("the input x has blocks of 1 of its 3 channels"));
}
