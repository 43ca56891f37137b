//! What a job decides of its own accord: the floor below which a tensor gets more bits, tensors that are the same, and
//! the bounds on memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::util::display::array_value_to_string;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, gaussian, manifest, names, quantized, refused, refused_with, run,
    tensor, tensors, text, write_digits_with, write_large_model, write_model,
};

/// A tensor of the example model that is made poor.
const POOR: &str = "blocks.2.proj.weight";

/// Two bits, at which all other tensors of the example model are better than 0.93 and 8.9 dB.
const TWO_BITS: [&str; 4] = ["--bits", "2", "--group-size", "64"];

/// The example model with a tensor that is poor at two bits: in every group one weight is far from the others, and four
/// codes are not enough for both.
fn with_poor_tensor(directory: &Path) -> PathBuf {
    let mut values = gaussian(128 * 128, 1);
    values.iter_mut().step_by(64).for_each(|weight| *weight = 8.0);
    write_digits_with(directory, POOR, &values)
}

/// The bits that were tried for a tensor before those that it has.
fn tried(tensor: &Value) -> Vec<u64> {
    let attempts = tensor["fallbacks"].as_array().map_or(&[][..], Vec::as_slice);
    attempts.iter().map(|attempt| attempt["bits"].as_u64().unwrap()).collect()
}

/// Asserts that the poor tensor alone went from two bits to three, and gives what is said of it.
#[track_caller]
fn only_the_poor_one_fell_back(report: &Value) -> &Value {
    for other in tensors(report).iter().filter(|tensor| tensor["tensor"] != POOR) {
        assert_eq!(tried(other), Vec::<u64>::new(), "{other}");
        let expected = if other["bits"].is_null() { "1-D" } else { "bit_width" };
        assert!(other["because"] == expected && (other["bits"].is_null() || other["bits"] == 2), "{other}");
    }
    let poor = tensor(report, POOR);
    assert_eq!((&poor["bits"], tried(poor)), (&json!(3), vec![2]), "{poor}");
    poor
}

#[test]
fn a_poor_tensor_alone_falls_back() {
    let directory = TempDir::new().unwrap();
    let model = with_poor_tensor(directory.path());
    let arguments = [TWO_BITS.as_slice(), &["--min-accuracy", "0.9"]].concat();
    let (out, report) = quantized(text(&model), directory.path(), "out", &arguments);
    let poor = only_the_poor_one_fell_back(&report);
    let because = poor["because"].as_str().unwrap();
    contains(because, &["fallback: 2 bits have a cosine similarity of 0.8", ", below min_accuracy 0.9"]);
    let cosine = |of: &Value| of["cosine_similarity"].as_f64().unwrap();
    assert!(cosine(&poor["fallbacks"][0]) < 0.9 && cosine(poor) > 0.93, "{poor}");

    assert_eq!(manifest(&out)["tensors"], report["tensors"], "the manifest tells what the report tells");
    contains(&run(arrow_quant(&["report", text(&out)])).printed(), &["fell back: blocks.2.proj.weight from 2 bits ("]);
    run(arrow_quant(&["validate", text(&model), text(&out), "--min-accuracy", "0.9", "--quiet"])).printed();
}

#[test]
fn with_fail_fast_a_poor_tensor_ends_the_job() {
    let directory = TempDir::new().unwrap();
    let model = with_poor_tensor(directory.path());
    let out = directory.path().join("out");
    let arguments = [TWO_BITS.as_slice(), &["--min-accuracy", "0.9", "--fail-fast"]].concat();
    let message = refused_with(3, text(&model), &out, &arguments);
    contains(
        &message,
        &[
            POOR,
            "quantized to 2 bits",
            "a cosine similarity of 0.8",
            "below --min-accuracy 0.9",
            "leave out --fail-fast",
        ],
    );
    // Without a poor tensor there is nothing to stop for.
    let (_, report) = quantized(DIGITS, directory.path(), "out", &arguments);
    assert_eq!(report["settings"]["fail_fast"], true);
}

#[test]
fn a_floor_in_decibels() {
    let directory = TempDir::new().unwrap();
    let model = with_poor_tensor(directory.path());
    let with_floor = |name: &str, floor: &str, more: &[&str]| {
        let arguments = [TWO_BITS.as_slice(), &["--min-sqnr-db", floor], more].concat();
        quantized(text(&model), directory.path(), name, &arguments).1
    };
    let report = with_floor("eight", "8", &[]);
    let because = only_the_poor_one_fell_back(&report)["because"].as_str().unwrap();
    contains(because, &["fallback: 2 bits have an SQNR of ", " dB, below min_sqnr_db 8"]);

    let report = with_floor("more", "27", &["--tensors", POOR]);
    let poor = tensor(&report, POOR);
    assert_eq!((&poor["bits"], tried(poor)), (&json!(6), vec![2, 3, 4, 5]), "{poor}");
    assert!(poor["sqnr_db"].as_f64().unwrap() >= 27.0, "{poor}");
}

#[test]
fn a_tensor_that_no_width_satisfies_is_kept() {
    let directory = TempDir::new().unwrap();
    let model = with_poor_tensor(directory.path());
    let arguments = [TWO_BITS.as_slice(), &["--min-sqnr-db", "60", "--tensors", POOR]].concat();
    let (out, report) = quantized(text(&model), directory.path(), "out", &arguments);
    let poor = tensor(&report, POOR);
    assert_eq!((&poor["bits"], tried(poor)), (&Value::Null, vec![2, 3, 4, 5, 6, 8]), "{poor}");
    assert_eq!((&poor["group_size"], &poor["bytes"]), (&Value::Null, &json!(128 * 128 * 2)), "{poor}");
    contains(poor["because"].as_str().unwrap(), &["fallback: 8 bits have an SQNR of 4", "below min_sqnr_db 60"]);
    contains(&run(arrow_quant(&["report", text(&out)])).printed(), &["below the floor 1", " to kept\n"]);
    run(arrow_quant(&["validate", text(&model), text(&out), "--quiet"])).printed();
}

/// Component and tensor of every row in the files of weights.
fn stored_rows(out: &Path) -> Vec<String> {
    let mut rows = Vec::new();
    for part in names(&out.join("weights")) {
        let file = File::open(out.join("weights").join(part)).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let shown = |name: &str, row| array_value_to_string(&batch[name], row).unwrap();
            rows.extend(
                (0..batch.num_rows()).map(|row| format!("{}/{}", shown("component", row), shown("tensor", row))),
            );
        }
    }
    rows
}

/// What a query over a quantized model, `m`, prints as CSV.
#[track_caller]
fn queried(out: &Path, query: &str) -> String {
    run(arrow_quant(&["sql", query, "--model", &format!("m={}", text(out)), "--format", "csv"])).printed()
}

/// As when the output layer is the embedding.
fn write_tied_model(path: &Path) {
    let ones = |name| Tensor { name, dtype: "F32", shape: vec![64], values: vec![1.0; 64] };
    write_model(
        path,
        &[
            Tensor::gaussian("embed.weight", "F32", &[64, 128], 1),
            Tensor::gaussian("middle.weight", "F32", &[64, 128], 2),
            Tensor::gaussian("out.weight", "F32", &[64, 128], 1),
            ones("norm.0"),
            ones("norm.1"),
        ],
    );
}

#[test]
fn a_tensor_with_two_names_is_stored_once() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("tied.safetensors");
    write_tied_model(&model);
    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    let (first, second) = (tensor(&report, "embed.weight"), tensor(&report, "out.weight"));
    assert_eq!((&second["same_as"], &second["bytes"]), (&json!("embed.weight"), &json!(0)), "{second}");
    assert_eq!((&first["same_as"], &first["bytes"]), (&Value::Null, &json!(64 * 128 / 2 + 64 * 4)), "{first}");
    for figure in ["bits", "group_size", "cosine_similarity", "sqnr_db", "max_abs_error"] {
        assert_eq!(first[figure], second[figure], "{figure}");
    }
    assert_eq!(second["because"], "the same as embed.weight");
    // Vectors that are the same by chance are not worth it.
    assert_eq!(tensor(&report, "norm.1")["same_as"], Value::Null);
    assert_eq!(stored_rows(&out), ["/embed.weight", "/middle.weight", "/norm.0", "/norm.1"]);
    assert_eq!(report["weights"], 3 * 64 * 128 + 2 * 64, "all names count");

    contains(
        &run(arrow_quant(&["report", text(&out)])).printed(),
        &["tied: out.weight is stored once, as embed.weight"],
    );
    run(arrow_quant(&["validate", text(&model), text(&out), "--min-accuracy", "0.99", "--quiet"])).printed();
    let query = "SELECT tensor, quantized['bits'] AS bits FROM m.quantized ORDER BY tensor";
    assert_eq!(queried(&out, query), "tensor,bits\nembed.weight,4\nmiddle.weight,4\nout.weight,4\n");
    let query = "SELECT tensor FROM m.weights ORDER BY tensor";
    assert_eq!(queried(&out, query), "tensor\nembed.weight\nmiddle.weight\nnorm.0\nnorm.1\nout.weight\n");
    let query = "SELECT a.weights = b.weights AS same FROM m.weights a CROSS JOIN m.weights b \
                 WHERE a.tensor = 'embed.weight' AND b.tensor = 'out.weight'";
    assert_eq!(queried(&out, query), "same\ntrue\n");
}

#[test]
fn of_two_names_the_one_that_shall_keep_more_decides() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("tied.safetensors");
    write_tied_model(&model);
    let (_, report) = quantized(text(&model), directory.path(), "wide", &["--layer-bit-widths", "out.weight=8"]);
    let first = tensor(&report, "embed.weight");
    assert_eq!((&first["bits"], &tensor(&report, "out.weight")["bits"]), (&json!(8), &json!(8)));
    assert_eq!(first["because"], "layer_bit_widths 'out.weight', for out.weight which is the same");

    let (_, report) = quantized(text(&model), directory.path(), "kept", &["--sensitive-layer-names", "out"]);
    let bits = |name| &tensor(&report, name)["bits"];
    assert_eq!(
        [bits("embed.weight"), bits("out.weight"), bits("middle.weight")],
        [&Value::Null, &Value::Null, &json!(4)]
    );
}

#[test]
fn components_of_a_pipeline_share_what_is_the_same() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("pipeline");
    let component = |name: &str| model.join(name).join("diffusion_pytorch_model.safetensors");
    let (shared, own) = (Tensor::gaussian("w", "F16", &[64, 64], 1), Tensor::gaussian("v", "F16", &[64, 64], 2));
    write_model(&component("unet"), &[own, shared]);
    write_model(&component("vae"), &[Tensor::gaussian("w", "F16", &[64, 64], 1)]);
    let index = r#"{"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}"#;
    fs::write(model.join("model_index.json"), index).unwrap();

    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    let shown =
        |t: &Value| format!("{}/{} {} {}", t["component"], t["tensor"], t["same_as"], t["bytes"]).replace('"', "");
    let shown: Vec<_> = tensors(&report).iter().map(shown).collect();
    assert_eq!(shown, ["unet/v null 2304", "unet/w null 2304", "vae/w unet/w 0"]);
    assert_eq!(stored_rows(&out), ["unet/v", "unet/w"]);
    run(arrow_quant(&["validate", text(&model), text(&out), "--min-accuracy", "0.99", "--quiet"])).printed();
    let query = "SELECT component, tensor FROM m.quantized ORDER BY component, tensor";
    assert_eq!(queried(&out, query), "component,tensor\nunet,v\nunet,w\nvae,w\n");
}

#[test]
fn a_model_that_is_read_into_memory_gives_the_same_bytes() {
    let directory = TempDir::new().unwrap();
    let (mapped, _) = quantized(DIGITS, directory.path(), "mapped", &[]);
    let (read, _) = quantized(DIGITS, directory.path(), "read", &["--enable-streaming=false"]);
    assert!(files(&mapped) == files(&read));
}

/// The megabytes that a message says are the least.
#[track_caller]
fn least_megabytes(message: &str) -> String {
    let words: Vec<&str> = message.split(' ').collect();
    let at = words.windows(2).position(|pair| pair[0] == "or" && pair[1].starts_with("more")).unwrap();
    words[at - 1].parse::<u64>().unwrap_or_else(|_| panic!("{message}")).to_string()
}

#[test]
fn a_model_that_does_not_fit_in_memory_is_refused_unless_it_is_mapped() {
    let directory = TempDir::new().unwrap();
    let (model, out) = (directory.path().join("large.safetensors"), directory.path().join("out"));
    // 16.8 MB of weights.
    write_large_model(&model, "BF16", 2 << 10);
    // The least for the program without a model.
    let limit = least_megabytes(&refused(text(&model), &out, &["--max-memory-limit-mb", "1"]));
    let with_limit = |limit, streaming| ["--max-memory-limit-mb", limit, streaming, "--method", "minmax"];
    let message = refused(text(&model), &out, &with_limit(&limit, "--enable-streaming=false"));
    contains(&message, &[&format!("--max-memory-limit-mb is {limit}, but "), "or --enable-streaming"]);
    // Both ways out of it.
    let enough = least_megabytes(&message);
    let quantized = |name, arguments: [&str; 5]| files(&quantized(text(&model), directory.path(), name, &arguments).0);
    let (read, mapped) =
        (with_limit(&enough, "--enable-streaming=false"), with_limit(&limit, "--enable-streaming=true"));
    assert!(quantized("read", read) == quantized("mapped", mapped));
}
