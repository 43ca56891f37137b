//! Calibrated jobs: what they write beside the weights, what they make of the weights, what they refuse, and what validation
//! says of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Float32Array, Float32Builder, Float64Array, Float64Builder, Int64Array, ListBuilder,
    RecordBatch, StringArray,
};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, manifest, names, quantized, refused, run, tensor, tensors, text,
    write_model,
};

/// The calibration of the example model.
const CALIBRATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/digits-dit/calibration.parquet");

/// One row of a calibration table.
#[derive(Clone)]
struct Row {
    tensor: &'static str,
    timestep: i64,
    state: &'static str,
    min: Vec<f32>,
    max: Vec<f32>,
    mean_square: Vec<f32>,
    /// Counts, and where the first bin begins and the last ends.
    histogram: Option<(Vec<f64>, f32, f32)>,
}

impl Row {
    /// Inputs that get wider with time; every eighth channel is twenty times as wide as the others.
    fn new(tensor: &'static str, timestep: i64, channels: usize) -> Self {
        let width = |channel: usize| {
            let of_channel = if channel.is_multiple_of(8) { 20.0 } else { 1.0 + (channel % 5) as f32 / 4.0 };
            of_channel * (1.0 + timestep as f32 / 50.0)
        };
        Self {
            tensor,
            timestep,
            state: "",
            min: (0..channels).map(|channel| -0.9 * width(channel)).collect(),
            max: (0..channels).map(width).collect(),
            mean_square: (0..channels).map(|channel| (width(channel) / 4.0).powi(2)).collect(),
            histogram: None,
        }
    }

    /// A layer's rows at all timesteps.
    fn at(timesteps: &[i64], tensor: &'static str, channels: usize) -> Vec<Self> {
        timesteps.iter().map(|&timestep| Self::new(tensor, timestep, channels)).collect()
    }
}

/// Writes a calibration table as Parquet.
fn write_calibration(path: &Path, rows: &[Row]) {
    let floats = |of: fn(&Row) -> &[f32]| {
        let mut lists = ListBuilder::new(Float32Builder::new());
        rows.iter().for_each(|row| lists.append_value(of(row).iter().map(|&x| Some(x))));
        Arc::new(lists.finish()) as ArrayRef
    };
    let text = |of: fn(&Row) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let mut columns = vec![
        ("tensor", text(|row| row.tensor)),
        ("timestep", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.timestep))) as ArrayRef),
        ("state", text(|row| row.state)),
        ("samples", Arc::new(Int64Array::from(vec![64; rows.len()]))),
        ("channel_min", floats(|row| &row.min)),
        ("channel_max", floats(|row| &row.max)),
        ("channel_mean_square", floats(|row| &row.mean_square)),
    ];
    if rows.iter().any(|row| row.histogram.is_some()) {
        let bounds = |of: fn(&(Vec<f64>, f32, f32)) -> f32| {
            let bounds = rows.iter().map(|row| row.histogram.as_ref().map_or(0.0, of));
            Arc::new(Float32Array::from_iter_values(bounds)) as ArrayRef
        };
        let mut counts = ListBuilder::new(Float64Builder::new());
        rows.iter()
            .for_each(|row| counts.append_option(row.histogram.as_ref().map(|h| h.0.iter().map(|&count| Some(count)))));
        columns.push(("histogram", Arc::new(counts.finish())));
        columns.push(("histogram_min", bounds(|histogram| histogram.1)));
        columns.push(("histogram_max", bounds(|histogram| histogram.2)));
    }
    write_table(path, &RecordBatch::try_from_iter(columns).unwrap());
}

fn write_table(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn read_table(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

/// A row of `activations.parquet`: layer and state, group, its timesteps and how many of them were measured.
type Group = (String, String, i32, std::ops::Range<i64>, i64);

/// The time groups of a quantized model, in their order in the file.
fn time_groups(out: &Path) -> Vec<Group> {
    let batch = read_table(&out.join("activations.parquet"));
    let text = |name: &str, row| batch[name].as_string::<i32>().value(row).to_string();
    let long = |name: &str, row| batch[name].as_primitive::<Int64Type>().value(row);
    let group = |row| {
        let number = batch["time_group"].as_primitive::<Int32Type>().value(row);
        let timesteps = long("t_start", row)..long("t_end", row);
        (text("tensor", row), text("state", row), number, timesteps, long("timesteps", row))
    };
    (0..batch.num_rows()).map(group).collect()
}

/// A model of its own, and its calibration.
struct Example {
    directory: TempDir,
    model: PathBuf,
    calibration: PathBuf,
}

const TIMESTEPS: [i64; 5] = [0, 40, 80, 120, 160];

impl Example {
    /// A linear layer, a convolution, and two tensors that are the same.
    fn new() -> Self {
        let rows = [
            Row::at(&TIMESTEPS, "conv.weight", 16),
            Row::at(&TIMESTEPS, "linear.weight", 128),
            Row::at(&TIMESTEPS, "out.weight", 64),
        ];
        let tensors = [
            Tensor::gaussian("bias", "F32", &[64], 3),
            Tensor::gaussian("conv.weight", "F16", &[32, 16, 3, 3], 1),
            Tensor::gaussian("embed.weight", "F32", &[64, 64], 4),
            Tensor::gaussian("linear.weight", "F32", &[64, 128], 2),
            Tensor::gaussian("out.weight", "F32", &[64, 64], 4),
        ];
        Self::of(&tensors, &rows.concat())
    }

    fn of(tensors: &[Tensor], rows: &[Row]) -> Self {
        let directory = TempDir::new().unwrap();
        let [model, calibration] = ["model", "calibration.parquet"].map(|name| directory.path().join(name));
        write_model(&model.join("model.safetensors"), tensors);
        write_calibration(&calibration, rows);
        Self { directory, model, calibration }
    }

    /// A job with the calibration.
    #[track_caller]
    fn calibrated(&self, name: &str, arguments: &[&str]) -> (PathBuf, Value) {
        let all = [["--calibration", text(&self.calibration)].as_slice(), arguments].concat();
        quantized(text(&self.model), self.directory.path(), name, &all)
    }

    /// A job without it.
    #[track_caller]
    fn plain(&self, name: &str, arguments: &[&str]) -> (PathBuf, Value) {
        quantized(text(&self.model), self.directory.path(), name, arguments)
    }

    /// The message of a job with another calibration, which must fail and leave nothing.
    #[track_caller]
    fn refused(&self, rows: &[Row]) -> String {
        let path = self.directory.path().join("wrong.parquet");
        write_calibration(&path, rows);
        refused(text(&self.model), &self.directory.path().join("refused"), &["--calibration", text(&path)])
    }

    #[track_caller]
    fn validated(&self, out: &Path) -> Value {
        run(self.validation(out).arg("--json")).json()
    }

    fn validation(&self, out: &Path) -> std::process::Command {
        let mut command = arrow_quant(&["validate", text(&self.model), text(out)]);
        command.args(["--calibration", text(&self.calibration)]);
        command
    }
}

#[track_caller]
fn layers(report: &Value) -> &[Value] {
    report["layers"].as_array().unwrap()
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What a query over an original, `o`, and a quantized model, `m`, prints as CSV, without its head.
#[track_caller]
fn queried(original: &Path, out: &Path, query: &str) -> Vec<String> {
    let models = [format!("o={}", text(original)), format!("m={}", text(out))];
    let printed =
        run(arrow_quant(&["sql", query, "--model", &models[0], "--model", &models[1], "--format", "csv"])).printed();
    printed.lines().skip(1).map(str::to_string).collect()
}

#[test]
fn without_a_calibration_fields_about_timesteps_change_no_weight() {
    let directory = TempDir::new().unwrap();
    let weights = |name: &str, arguments: &[&str]| {
        let (out, report) = quantized(DIGITS, directory.path(), name, arguments);
        assert_eq!((&report["time_aware"], &report["reason"]), (&json!(false), &json!("no calibration")));
        assert!(layers(&report).is_empty());
        assert_eq!(manifest(&out)["tables"], json!([]));
        assert!(!names(&out).iter().any(|name| name == "activations.parquet" || name == "smoothing.parquet"));
        files(&out.join("weights"))
    };
    let expected = weights("plain", &[]);
    for (name, arguments) in [
        ("off", ["--enable-time-aware=false", "--enable-spatial=false"].as_slice()),
        ("on", &["--enable-time-aware", "--enable-spatial", "--num-time-groups", "3"]),
        ("equal", &["--time-group-boundaries", "equal", "--calibration-samples", "7"]),
    ] {
        assert!(weights(name, arguments) == expected, "{name}");
    }
}

#[test]
fn groups_cover_all_timesteps_of_each_layer() {
    let directory = TempDir::new().unwrap();
    // The search for smoothing would take most of the time.
    let arguments = ["--calibration", CALIBRATION, "--num-time-groups", "4", "--enable-spatial=false"];
    let (out, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    assert_eq!((&report["time_aware"], &report["reason"]), (&json!(true), &Value::Null));
    let groups = time_groups(&out);
    assert_eq!(layers(&report).len(), 25);
    for layer in layers(&report) {
        let own: Vec<&Group> = groups.iter().filter(|group| layer["tensor"] == *group.0).collect();
        let name = &layer["tensor"];
        assert!((1..=4).contains(&own.len()), "{name}");
        assert_eq!(layer["time_groups"], own.len(), "{name}");
        assert_eq!(layer["timesteps"], own.iter().map(|group| group.4).sum::<i64>(), "{name}");
        let mut start = 0;
        for (index, (_, state, number, timesteps, measured)) in own.iter().enumerate() {
            assert_eq!((state.as_str(), *number as usize, timesteps.start), ("", index, start), "{name}");
            assert!(timesteps.end > start && *measured > 0, "{name}");
            start = timesteps.end;
        }
        // The last timestep that was measured, 960, and a step's width.
        assert_eq!(start, 1000, "{name}");
    }
    // The first group of equal groups has as many timesteps as the others, or one less.
    let arguments = [arguments.as_slice(), &["--time-group-boundaries", "equal"]].concat();
    let (out, _) = quantized(DIGITS, directory.path(), "equal", &arguments);
    let measured: Vec<i64> = time_groups(&out).iter().take(4).map(|group| group.4).collect();
    assert_eq!(measured, [6, 6, 6, 7]);
}

#[test]
fn tables_are_files_of_the_model() {
    let example = Example::new();
    let (out, report) = example.calibrated("out", &[]);
    let manifest = manifest(&out);
    let tables = manifest["tables"].as_array().unwrap();
    let paths: Vec<&str> = tables.iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["activations.parquet", "smoothing.parquet"]);
    for file in tables {
        let bytes = fs::read(out.join(file["path"].as_str().unwrap())).unwrap();
        assert_eq!(file["bytes"], bytes.len(), "{file}");
        assert_eq!(file["sha256"], hash(&bytes), "{file}");
    }
    let stored: u64 =
        tables.iter().chain(manifest["files"].as_array().unwrap()).map(|f| f["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["stored_bytes"], stored, "tables count");
    for key in ["time_aware", "reason", "layers"] {
        assert_eq!(manifest[key], report[key], "{key}");
    }
    let query = "SELECT tensor, state, time_group, t_start, t_end, timesteps FROM m.time_groups
                 EXCEPT SELECT tensor, state, time_group, t_start, t_end, timesteps FROM m.activations";
    assert!(queried(&example.model, &out, query).is_empty());
    let query = "SELECT tensor, array_length(smooth), array_min(smooth) > 0 FROM m.smoothing ORDER BY tensor";
    assert_eq!(queried(&example.model, &out, query), ["conv.weight,16,true", "linear.weight,128,true"]);
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_switched_off_has_no_part() {
    let example = Example::new();
    let weights = |out: &Path| files(&out.join("weights"));
    let (plain, _) = example.plain("plain", &[]);
    let (calibrated, report) = example.calibrated("calibrated", &[]);
    assert!(weights(&plain) != weights(&calibrated));
    assert_eq!((&report["time_aware"], &report["reason"]), (&json!(true), &Value::Null));

    let not_aware = |report: &Value| {
        let said = (&report["time_aware"], &report["reason"]);
        assert_eq!(said, (&json!(false), &json!("enable_time_aware is false")));
        for layer in layers(report) {
            assert_eq!((&layer["time_groups"], &layer["importance_gain_db"]), (&json!(1), &Value::Null), "{layer}");
            assert_eq!(number(&layer["time_groups_gain_db"]), 0.0, "{layer}");
        }
    };
    let (smoothed, report) = example.calibrated("smoothed", &["--enable-time-aware=false"]);
    not_aware(&report);
    assert!(time_groups(&smoothed).iter().all(|group| group.3 == (0..200) && group.4 == 5));
    assert!(weights(&plain) != weights(&smoothed) && smoothed.join("smoothing.parquet").is_file());

    let (off, report) = example.calibrated("off", &["--enable-time-aware=false", "--enable-spatial=false"]);
    not_aware(&report);
    assert!(weights(&plain) == weights(&off) && !off.join("smoothing.parquet").exists());
    assert!(layers(&report).iter().all(|layer| layer["smoothing_alpha"].is_null()));
    let figures = [&plain, &off].map(|out| {
        let validated = run(arrow_quant(&["validate", text(&example.model), text(out), "--json"])).json();
        validated["tensors"].clone()
    });
    assert_eq!(figures[0], figures[1]);
}

#[test]
fn weights_are_restored_to_the_scale_of_the_original() {
    let example = Example::new();
    let (out, report) = example.calibrated("out", &["--bits", "8", "--group-size", "64"]);
    let alpha =
        |name: &str| layers(&report).iter().find(|layer| layer["tensor"] == name).unwrap()["smoothing_alpha"].clone();
    assert!(alpha("conv.weight").is_number() && alpha("linear.weight").is_number(), "{report}");
    assert!(alpha("out.weight").is_null(), "it is used as embed.weight too");

    let query = "SELECT o.tensor, cosine_similarity_agg(o.weights, m.weights) > 0.999,
                        sqnr_agg(o.weights, dequantize(q.quantized)) > 20
                 FROM o.weights o JOIN m.weights m ON o.tensor = m.tensor JOIN m.quantized q ON o.tensor = q.tensor
                 GROUP BY o.tensor ORDER BY o.tensor";
    // Codes of what was smoothed stand for other weights.
    let expected =
        ["conv.weight,true,false", "embed.weight,true,true", "linear.weight,true,false", "out.weight,true,true"];
    assert_eq!(queried(&example.model, &out, query), expected);
    let query = "SELECT q.tensor, max_abs_error(dequantize(q.quantized), scale_channels(w.weights, s.smooth)) < 1e-5
                 FROM m.quantized q JOIN m.weights w ON q.tensor = w.tensor JOIN m.smoothing s ON q.tensor = s.tensor
                 WHERE q.tensor = 'linear.weight'";
    assert_eq!(queried(&example.model, &out, query), ["linear.weight,true"]);

    let validated = example.validated(&out);
    for found in tensors(&validated) {
        let reported = tensor(&report, found["tensor"].as_str().unwrap());
        for figure in ["cosine_similarity", "sqnr_db", "max_abs_error"] {
            if !reported["bits"].is_null() {
                let (a, b) = (number(&found[figure]), number(&reported[figure]));
                assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{figure}: {found} {reported}");
            }
        }
        if !reported["bits"].is_null() {
            assert!(number(&found["cosine_similarity"]) > 0.999, "{found}");
        }
    }
}

#[test]
fn tied_tensors_are_stored_once_and_not_smoothed() {
    let example = Example::new();
    let (out, report) = example.calibrated("out", &[]);
    assert_eq!(tensor(&report, "out.weight")["same_as"], "embed.weight");
    let query = "SELECT a.weights = b.weights FROM m.weights a CROSS JOIN m.weights b
                 WHERE a.tensor = 'embed.weight' AND b.tensor = 'out.weight'";
    assert_eq!(queried(&example.model, &out, query), ["true"]);
    // The inputs of the one say what counts in both.
    let layer = layers(&report).iter().find(|layer| layer["tensor"] == "out.weight").unwrap();
    assert!(layer["importance_gain_db"].is_number(), "{layer}");
}

#[test]
fn kept_tensors_stay_as_they_were() {
    let example = Example::new();
    let (out, report) = example.calibrated("out", &["--sensitive-layer-names", "linear.weight"]);
    let layer = layers(&report).iter().find(|layer| layer["tensor"] == "linear.weight").unwrap();
    assert!(layer["smoothing_alpha"].is_number() && layer["importance_gain_db"].is_null(), "{layer}");
    let query = "SELECT max_abs_error(o.weights, m.weights) FROM o.weights o JOIN m.weights m ON o.tensor = m.tensor
                 WHERE o.tensor = 'linear.weight'";
    assert_eq!(queried(&example.model, &out, query), ["0.0"]);
    let layer = example.validated(&out);
    let layer = layers(&layer).iter().find(|layer| layer["tensor"] == "linear.weight").unwrap();
    // Nothing but the inputs loses anything.
    assert!((number(&layer["output_sqnr_db"]) - number(&layer["activation_sqnr_db"])).abs() < 1e-6, "{layer}");
}

/// A model of one layer, to be refused with wrong tables.
fn one_layer() -> Example {
    let tensors = [
        Tensor::gaussian("bias", "F32", &[64], 1),
        Tensor::gaussian("linear.weight", "F32", &[64, 32], 2),
        Tensor::gaussian("other.weight", "F32", &[64, 32], 3),
    ];
    Example::of(&tensors, &Row::at(&TIMESTEPS, "linear.weight", 32))
}

#[test]
fn wrong_tables_are_refused_and_nothing_is_left() {
    let example = one_layer();
    let rows = Row::at(&TIMESTEPS, "linear.weight", 32);
    let with = |change: fn(&mut Row)| {
        let mut rows = rows.clone();
        change(&mut rows[2]);
        rows
    };
    let and = |other: Vec<Row>| [rows.clone(), other].concat();
    let renamed = |name: &'static str| rows.iter().map(|row| Row { tensor: name, ..row.clone() }).collect::<Vec<_>>();
    let missing = Row::at(&[0, 40, 120, 160], "other.weight", 32);
    for (rows, expected) in [
        (and(missing), ["other.weight", "timestep 80 is missing, which linear.weight has"]),
        (and(vec![rows[1].clone()]), ["linear.weight", "timestep 40 is there twice"]),
        (with(|row| row.max.truncate(31)), ["linear.weight", "timestep 80: channel_min, channel_max and"]),
        (Row::at(&TIMESTEPS, "linear.weight", 31), ["linear.weight", "with 31 channels; its weights have 32"]),
        (with(|row| *row = Row::new(row.tensor, 80, 31)), ["linear.weight", "timestep 80 has 31 channels"]),
        (with(|row| row.min[3] = f32::NAN), ["linear.weight", "timestep 80: channel_min of channel 3 is NaN"]),
        (with(|row| row.max[3] = f32::INFINITY), ["linear.weight", "timestep 80: channel_max of channel 3 is inf"]),
        (with(|row| row.min[3] = 99.0), ["linear.weight", "timestep 80: channel 3 has minimum 99, maximum"]),
        (with(|row| row.mean_square[3] = 1e6), ["linear.weight", "timestep 80: channel 3 has minimum -"]),
        (with(|row| row.mean_square[3] = -1.0), ["linear.weight", "mean square -1, which contradict each other"]),
        (with(|row| row.timestep = -80), ["linear.weight", "timestep -80: timestep is -80, allowed: 0 or more"]),
        (
            with(|row| row.histogram = Some((vec![1.0, 2.0], 1.0, 1.0))),
            ["linear.weight", "timestep 80: its histogram has no width"],
        ),
        (
            with(|row| row.histogram = Some((vec![1.0, -2.0], -1.0, 1.0))),
            ["linear.weight", "timestep 80: its histogram has no width, or counts that are no numbers from 0 on"],
        ),
        (
            renamed("linear.weigth"),
            ["linear.weigth", "which is not a tensor of the model; did you mean 'linear.weight'?"],
        ),
        (renamed("bias"), ["bias", "it is no weight of a linear or convolutional layer, leave it out"]),
        (vec![], ["wrong.parquet", "it has no rows"]),
    ] {
        let message = example.refused(&rows);
        contains(&message, &expected);
        contains(&message, &["wrong.parquet: "]);
    }
    assert_eq!(names(example.directory.path()), ["calibration.parquet", "model", "wrong.parquet"]);
}

#[test]
fn files_that_are_no_calibration_are_refused() {
    let example = one_layer();
    let path = |name: &str| example.directory.path().join(name);
    fs::write(path("text.parquet"), "this is no Parquet file").unwrap();
    fs::write(path("text.arrow"), "this is no Arrow file").unwrap();
    fs::write(path("table.csv"), "tensor,timestep\n").unwrap();
    let batch = read_table(&example.calibration);
    write_table(&path("lacking.parquet"), &batch.project(&[0, 1, 2, 3, 4, 5]).unwrap());
    for (name, expected) in [
        ("text.parquet", "text.parquet: not a calibration table: "),
        ("text.arrow", "text.arrow: not a calibration table: "),
        ("table.csv", "table.csv: not a calibration table: allowed: names that end with .parquet or .arrow"),
        ("none.parquet", "none.parquet: no such file or directory"),
        ("lacking.parquet", "lacking.parquet: it has no column channel_mean_square; expected tensor, timestep"),
    ] {
        let message = refused(text(&example.model), &path("out"), &["--calibration", text(&path(name))]);
        contains(&message, &[expected]);
    }
}

/// Puts another file in the place of a table, and its size and hash into the manifest.
fn replace_table(out: &Path, name: &str, batch: &RecordBatch) {
    write_table(&out.join(name), batch);
    let bytes = fs::read(out.join(name)).unwrap();
    let mut manifest = manifest(out);
    let tables = manifest["tables"].as_array_mut().unwrap();
    let entry = tables.iter_mut().find(|file| file["path"] == name).unwrap();
    (entry["bytes"], entry["sha256"]) = (json!(bytes.len()), json!(hash(&bytes)));
    fs::write(out.join("arrow_quant.json"), manifest.to_string()).unwrap();
}

#[test]
fn validation_measures_the_parameters_of_inputs() {
    let example = Example::new();
    let (out, report) = example.calibrated("out", &[]);
    let validated = example.validated(&out);
    assert_eq!(layers(&validated).len(), 3);
    for (found, reported) in layers(&validated).iter().zip(layers(&report)) {
        for same in ["tensor", "state", "timesteps", "time_groups"] {
            assert_eq!(found[same], reported[same], "{same}");
        }
        let worst_loss = number(&found["worst_loss_db"]);
        assert!((0.0..3.0).contains(&worst_loss) && number(&found["loss_db"]) <= worst_loss, "{found}");
        assert_eq!(found["smoothing_error"].is_null(), reported["smoothing_alpha"].is_null(), "{found}");
        assert!(found["smoothing_error"].as_f64().is_none_or(|error| error < 1e-5), "{found}");
        for figure in ["activation_sqnr_db", "worst_activation_sqnr_db"] {
            let (a, b) = (number(&found[figure]), number(&reported[figure]));
            assert!((a - b).abs() < 0.3, "{figure}: {found} {reported}");
        }
        let [worst, mean] = ["worst_output_sqnr_db", "output_sqnr_db"].map(|figure| number(&found[figure]));
        assert!(worst <= mean && mean < number(&found["activation_sqnr_db"]), "{found}");
    }
    let plain = run(arrow_quant(&["validate", text(&example.model), text(&out), "--json"])).json();
    assert!(layers(&plain).is_empty());
    assert_eq!(plain["tensors"], validated["tensors"]);

    let (other, _) = example.plain("plain", &[]);
    contains(&run(&mut example.validation(&other)).error(), &["plain` was quantized without a calibration"]);
}

#[test]
fn the_example_model_is_validated_with_its_calibration() {
    let directory = TempDir::new().unwrap();
    let (out, report) = quantized(DIGITS, directory.path(), "out", &["--calibration", CALIBRATION]);
    let command = ["validate", DIGITS, text(&out), "--calibration", CALIBRATION, "--json"];
    let validated = run(arrow_quant(&command)).json();
    assert_eq!((layers(&report).len(), layers(&validated).len()), (25, 25));
    for layer in layers(&validated) {
        assert!(layer["smoothing_error"].as_f64().is_none_or(|error| error < 1e-5), "{layer}");
        assert!((0.0..3.0).contains(&number(&layer["worst_loss_db"])), "{layer}");
        assert!(number(&layer["worst_output_sqnr_db"]) > 15.0, "{layer}");
    }
    let smoothed = layers(&report).iter().filter(|layer| layer["smoothing_alpha"].is_number()).count();
    assert!(smoothed > 10, "{report}");
    for layer in layers(&report) {
        assert!(number(&layer["clipping_gain_db"]) >= 0.0 && number(&layer["smoothing_gain_db"]) >= 0.0, "{layer}");
        assert!(number(&layer["time_groups_gain_db"]) >= 0.0 && number(&layer["importance_gain_db"]) > 0.0, "{layer}");
    }
    let printed = run(arrow_quant(&["report", text(&out)])).printed();
    contains(&printed, &["inputs of ", "groups +dB", "time-aware         yes: ", " time groups in 25 layers"]);
    let page = directory.path().join("page.html");
    run(arrow_quant(&["report", text(&out), "--html", text(&page)])).printed();
    contains(&fs::read_to_string(page).unwrap(), &["id=\"layers\"", "time groups in 25 layers"]);
}

#[test]
fn a_timestep_that_is_not_in_one_group_is_refused() {
    let example = one_layer();
    let (out, report) = example.calibrated("out", &["--time-group-boundaries", "equal", "--num-time-groups", "5"]);
    assert_eq!(layers(&report)[0]["time_groups"], 5);
    let whole = read_table(&out.join("activations.parquet"));
    let starts = whole["t_start"].as_primitive::<Int64Type>().clone();
    let without =
        filter_record_batch(&whole, &starts.iter().map(|start| Some(start.unwrap() != starts.value(1))).collect());
    replace_table(&out, "activations.parquet", &without.unwrap());
    let message = run(&mut example.validation(&out)).error();
    contains(&message, &["linear.weight: timestep 40 is in 0 time groups of the quantized model, expected 1"]);

    let double = concat_batches(&whole.schema(), [&whole, &whole.slice(4, 1)]).unwrap();
    replace_table(&out, "activations.parquet", &double);
    let message = run(&mut example.validation(&out)).error();
    contains(&message, &["linear.weight: timestep 160 is in 2 time groups of the quantized model, expected 1"]);

    replace_table(&out, "activations.parquet", &whole);
    run(example.validation(&out).arg("--quiet")).printed();
    // The calibration of a layer that the model was not calibrated with.
    let rows = [Row::at(&TIMESTEPS, "linear.weight", 32), Row::at(&TIMESTEPS, "other.weight", 32)];
    write_calibration(&example.calibration, &rows.concat());
    contains(&run(&mut example.validation(&out)).error(), &["other.weight: timestep 0 is in 0 time groups"]);
}

#[test]
fn damaged_tables_are_found() {
    let example = Example::new();
    let (out, _) = example.calibrated("out", &[]);
    for name in ["activations.parquet", "smoothing.parquet"] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        let validate = || run(arrow_quant(&["validate", text(&example.model), text(&out), "--quiet"]));

        fs::write(&path, &whole[..whole.len() - 100]).unwrap();
        let expected = [name, " bytes, but the manifest says ", "the quantized model is damaged, quantize it again"];
        contains(&validate().error(), &expected);
        contains(&run(arrow_quant(&["report", text(&out)])).error(), &expected);

        fs::remove_file(&path).unwrap();
        contains(&validate().error(), &[name, "is missing, but the manifest says"]);

        // One bit, wherever it is: in what is read, or in what is not.
        for at in [2, whole.len() / 4, whole.len() / 2, whole.len() - 20] {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, damaged).unwrap();
            contains(&validate().error(), &["quantize the model again"]);
        }
        fs::write(&path, vec![0; whole.len()]).unwrap();
        contains(&validate().error(), &[name, "is not what was written", "quantize the model again"]);
        fs::write(&path, whole).unwrap();
        validate().printed();
    }
}

/// Files that are what the manifest says, but hold no parameters.
#[test]
fn tables_without_meaning_are_found() {
    let example = one_layer();
    let (out, _) = example.calibrated("out", &[]);
    let message = |name: &str, batch: &RecordBatch| {
        replace_table(&out, name, batch);
        run(arrow_quant(&["report", text(&out)])).error()
    };
    let activations = read_table(&out.join("activations.parquet"));
    let without = activations.project(&[0, 1, 2, 3, 4, 5, 6]).unwrap();
    contains(&message("activations.parquet", &without), &["its column scale is missing or damaged"]);
    let with = |name: &str, column: ArrayRef| {
        let schema = activations.schema();
        let columns = schema.fields().iter().zip(activations.columns()).map(|(field, own)| {
            let column = if field.name() == name { Arc::clone(&column) } else { Arc::clone(own) };
            (field.name().clone(), column)
        });
        RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).unwrap()
    };
    let rows = activations.num_rows();
    for (name, column) in [
        ("scale", Arc::new(Float64Array::from(vec![f64::NAN; rows])) as ArrayRef),
        ("scale", Arc::new(Float64Array::from(vec![0.0; rows]))),
        ("zero_point", Arc::new(Int64Array::from(vec![256; rows]))),
        ("bits", Arc::new(Int64Array::from(vec![4; rows]))),
    ] {
        let message = message("activations.parquet", &with(name, column));
        contains(
            &message,
            &["'linear.weight': has parameters of activations that are out of their domain: quantize the model again"],
        );
    }
    replace_table(&out, "activations.parquet", &activations);
    let mut lists = ListBuilder::new(Float32Builder::new());
    lists.append_value([Some(0.0); 32]);
    let smoothing = |lists: &mut ListBuilder<Float32Builder>| {
        let columns = [
            ("tensor", Arc::new(StringArray::from(vec!["linear.weight"])) as ArrayRef),
            ("alpha", Arc::new(Float64Array::from(vec![0.5]))),
            ("smooth", Arc::new(lists.finish())),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let wrong = smoothing(&mut lists);
    contains(&message("smoothing.parquet", &wrong), &["'linear.weight': has factors that are not numbers above 0"]);
    lists.append_value([Some(1.0); 31]);
    replace_table(&out, "smoothing.parquet", &smoothing(&mut lists));
    let message = run(arrow_quant(&["validate", text(&example.model), text(&out)])).error();
    contains(&message, &["'linear.weight': has 32 channels, and smoothing of 31: quantize the model again"]);
}

#[test]
fn a_plan_lists_the_layers() {
    let example = Example::new();
    let calibration = ["--calibration", text(&example.calibration)];
    let plan =
        |more: &[&str]| run(arrow_quant(&[["plan", text(&example.model)].as_slice(), &calibration, more].concat()));
    contains(&plan(&[]).printed(), &["inputs of ", "conv.weight", "linear.weight", "smoothing +dB"]);
    let dry = arrow_quant(&[
        "quantize",
        text(&example.model),
        text(&example.directory.path().join("out")),
        "--dry-run",
        "--json",
    ]);
    let planned = run({ dry }.args(calibration)).json();
    let (_, report) = example.calibrated("out", &[]);
    assert_eq!(planned["layers"], report["layers"]);
    // A plan that was written and is given to a job makes the same of the layers.
    let path = example.directory.path().join("plan.csv");
    plan(&["--output", text(&path), "--quiet"]).printed();
    let (by_plan, _) = example.calibrated("by-plan", &["--plan", text(&path)]);
    assert!(files(&by_plan.join("weights")) == files(&example.directory.path().join("out/weights")));
}

#[test]
fn convolutions_are_smoothed_by_their_channels() {
    let tensors = [Tensor::gaussian("conv.weight", "BF16", &[48, 16, 3, 3], 1)];
    let example = Example::of(&tensors, &Row::at(&TIMESTEPS, "conv.weight", 16));
    let (out, report) = example.calibrated("out", &["--bits", "8", "--group-size", "32"]);
    assert!(layers(&report)[0]["smoothing_alpha"].is_number(), "{report}");
    assert_eq!(layers(&report)[0]["channels"], 16);
    assert!(number(&tensor(&report, "conv.weight")["cosine_similarity"]) > 0.999);
    let validated = example.validated(&out);
    assert!(number(&layers(&validated)[0]["smoothing_error"]) < 1e-5, "{validated}");
    // Nine weights of a kernel have one factor.
    let smoothing = read_table(&out.join("smoothing.parquet"));
    let factors = smoothing["smooth"].as_list::<i32>().value(0);
    let factors = factors.as_primitive::<Float32Type>().values().to_vec();
    assert_eq!(factors.len(), 16);
    assert!(factors[0] > 3.0 * factors[1], "{factors:?}");
    let query = "SELECT to_floats(scale_channels(dequantize(q.quantized), array_concat(
                     array_repeat(CAST(1 / smooth[1] AS FLOAT), 9), array_repeat(CAST(1 / smooth[2] AS FLOAT), 135))))[1:18]
                   = to_floats(w.weights)[1:18]
                 FROM m.quantized q CROSS JOIN m.weights w CROSS JOIN m.smoothing";
    assert_eq!(queried(&example.model, &out, query), ["true"]);
}

#[test]
fn a_target_size_holds_for_the_tables_too() {
    let directory = TempDir::new().unwrap();
    for (name, target, limit) in
        [("bits", ["--target-bpw", "5"], 5.0 * 1_257_988.0 / 8.0), ("size", ["--target-size", "600kB"], 600e3)]
    {
        let arguments = [target.as_slice(), &["--calibration", CALIBRATION, "--method", "minmax"]].concat();
        let (out, report) = quantized(DIGITS, directory.path(), name, &arguments);
        let manifest = manifest(&out);
        let listed = ["files", "tables"].map(|key| manifest[key].as_array().unwrap().clone()).concat();
        let found: u64 =
            listed.iter().map(|file| fs::metadata(out.join(file["path"].as_str().unwrap())).unwrap().len()).sum();
        assert_eq!(report["stored_bytes"], found);
        assert!((0.97 * limit..=limit).contains(&(found as f64)), "{name}: {found}");
        assert!(out.join("activations.parquet").is_file());
    }
}

#[test]
fn threads_change_no_byte() {
    let example = Example::new();
    let [one, two] = ["1", "2"].map(|threads| files(&example.calibrated(threads, &["--threads", threads]).0));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(two[name] == *bytes, "{name}");
    }
}

#[test]
fn each_state_has_groups_of_its_own() {
    let mut rows = Vec::new();
    for (state, factor) in [("masked", 1.0), ("visible", 0.25)] {
        for mut row in Row::at(&TIMESTEPS, "linear.weight", 32) {
            row.state = state;
            row.min.iter_mut().chain(&mut row.max).for_each(|x| *x *= factor);
            row.mean_square.iter_mut().for_each(|x| *x *= factor * factor);
            rows.push(row);
        }
    }
    let example = Example::of(&[Tensor::gaussian("linear.weight", "F32", &[64, 32], 2)], &rows);
    let (out, report) = example.calibrated("out", &[]);
    let states = |report: &Value| layers(report).iter().map(|layer| layer["state"].clone()).collect::<Vec<_>>();
    assert_eq!(states(&report), ["masked", "visible"]);
    assert_eq!(states(&example.validated(&out)), ["masked", "visible"]);
    let groups = time_groups(&out);
    for state in ["masked", "visible"] {
        let own: Vec<&Group> = groups.iter().filter(|group| group.1 == state).collect();
        assert_eq!((own[0].3.start, own[own.len() - 1].3.end), (0, 200), "{state}");
        assert!(own.windows(2).all(|pair| pair[0].3.end == pair[1].3.start), "{state}");
    }
    // Inputs a quarter as wide have levels a quarter as wide.
    let batch = read_table(&out.join("activations.parquet"));
    let scales = batch["scale"].as_primitive::<Float64Type>().values().to_vec();
    let first = groups.iter().position(|group| group.1 == "visible").unwrap();
    assert!((scales[0] / scales[first] - 4.0).abs() < 1e-6, "{scales:?}");
    // One set of factors for both, for there is one set of weights.
    assert_eq!(read_table(&out.join("smoothing.parquet")).num_rows(), 1);

    // A state that a validation has and the model has not.
    let mut other = rows.clone();
    other.iter_mut().filter(|row| row.state == "visible").for_each(|row| row.state = "hidden");
    write_calibration(&example.calibration, &other);
    let message = run(&mut example.validation(&out)).error();
    contains(&message, &["linear.weight: timestep 0 in the state 'hidden' is in 0 time groups of the quantized model"]);
}

#[test]
fn components_of_a_pipeline_are_named_in_a_calibration() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("pipeline");
    for (component, seed) in [("unet", 1), ("vae", 2)] {
        let path = model.join(component).join("diffusion_pytorch_model.safetensors");
        write_model(&path, &[Tensor::gaussian("w.weight", "F16", &[64, 32], seed)]);
    }
    let index = r#"{"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}"#;
    fs::write(model.join("model_index.json"), index).unwrap();
    let calibration = directory.path().join("calibration.parquet");
    write_calibration(&calibration, &Row::at(&TIMESTEPS, "unet/w.weight", 32));
    let arguments = ["--calibration", text(&calibration)];
    let (out, report) = quantized(text(&model), directory.path(), "out", &arguments);
    assert_eq!(layers(&report)[0]["tensor"], "unet/w.weight");
    let validate = [["validate", text(&model), text(&out), "--json"].as_slice(), &arguments].concat();
    assert!(number(&layers(&run(arrow_quant(&validate)).json())[0]["smoothing_error"]) < 1e-5);
    write_calibration(&calibration, &Row::at(&TIMESTEPS, "w.weight", 32));
    let message = refused(text(&model), &directory.path().join("refused"), &arguments);
    contains(&message, &["tensor 'w.weight': ", "which is not a tensor of the model; did you mean '"]);
}

#[cfg(unix)]
mod interrupted {
    use super::*;
    use crate::interruption::{Job, PART_ROWS, gaussian};

    /// A job of three parts with a calibration, which is beside the job's directory.
    fn calibrated_job(directory: &TempDir) -> (Job, PathBuf) {
        let path = directory.path().join("calibration.parquet");
        write_calibration(&path, &Row::at(&[0, 500], "w", 4096));
        let argument: &'static str = String::from(text(&path)).leak();
        let arguments = ["--method", "minmax", "--calibration", argument];
        (Job::new(&[(gaussian("w", 1), 3 * PART_ROWS)], &arguments), path)
    }

    #[test]
    fn a_run_is_resumed_with_the_same_calibration() {
        let directory = TempDir::new().unwrap();
        let (job, _) = calibrated_job(&directory);
        let expected = job.expected(&[]);
        assert!(expected.contains_key("activations.parquet") && expected.contains_key("smoothing.parquet"));
        let left = job.leave(1);
        let report = job.resume(&[]);
        assert_eq!(report["resumed_parts"].as_u64(), Some(left.parts.len() as u64));
        assert_eq!(report["started_afresh"], Value::Null);
        left.is_untouched_in(&job.out());
        job.is_complete(&expected);
    }

    #[test]
    fn with_another_calibration_a_run_starts_afresh() {
        let directory = TempDir::new().unwrap();
        let (job, path) = calibrated_job(&directory);
        job.leave(1);
        // Every second channel is another.
        let mut rows = Row::at(&[0, 500], "w", 4096);
        rows.iter_mut().for_each(|row| row.max.iter_mut().step_by(2).for_each(|x| *x *= 3.0));
        write_calibration(&path, &rows);
        job.starts_afresh(&[], "it was begun with another calibration");
        let found = job.take_output();
        assert!(found == job.expected(&[]));
    }

    #[test]
    fn with_a_calibration_a_run_that_had_none_starts_afresh() {
        let directory = TempDir::new().unwrap();
        let (job, path) = calibrated_job(&directory);
        let plain = Job { arguments: vec!["--method", "minmax"], ..job };
        plain.leave(1);
        let calibration = ["--calibration", text(&path)];
        plain.starts_afresh(&calibration, "it was begun with another calibration");
        let found = plain.take_output();
        assert!(found == plain.expected(&calibration));
    }
}

/// Other programs have no place for the factors of smoothed channels, so nothing is smoothed for them.
#[test]
fn weights_for_other_programs_are_not_smoothed() {
    let directory = TempDir::new().unwrap();
    for format in ["sdnq", "mlx", "compressed-tensors", "comfyui"] {
        let out = directory.path().join(format!("{format}.safetensors"));
        let out = if format == "comfyui" { out } else { out.with_extension("") };
        let arguments =
            ["quantize", DIGITS, text(&out), "--format", format, "--calibration", CALIBRATION, "--group-size", "64"];
        let report = run(arrow_quant(&[&arguments[..], &["--json"]].concat())).json();
        let notes = report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap());
        assert_eq!(notes.filter(|note| note.contains("enable_spatial is false")).count(), 1, "{format}");
        let validated = run(arrow_quant(&["validate", DIGITS, text(&out), "--json"])).json();
        let [written, read] = [&report, &validated].map(|report| report["sqnr_db"].as_f64().unwrap());
        assert!((written - read).abs() < 0.01, "{format}: {written} dB written, {read} dB read");
    }
}
