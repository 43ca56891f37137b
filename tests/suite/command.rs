//! The `arrow-quant` command from outside: what it writes and what it prints.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use crate::common::{
    DIGITS, Tensor, arrow_quant, contains, files, manifest, names, quantized, run, text, write_large_model, write_model,
};
use arrow_quant_kernels::Isa;
use serde_json::Value;
use tempfile::TempDir;

/// The figures of each tensor: cosine similarity, SQNR and greatest error, by name.
fn figures(report: &Value) -> Vec<(String, [Option<f64>; 3])> {
    let tensors = report["tensors"].as_array().unwrap().iter().filter(|tensor| !tensor["bits"].is_null());
    let figures = tensors.map(|tensor| {
        let name = tensor["tensor"].as_str().unwrap().to_string();
        (name, ["cosine_similarity", "sqnr_db", "max_abs_error"].map(|key| tensor[key].as_f64()))
    });
    figures.collect()
}

#[test]
fn the_example_model_from_end_to_end() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out");
    let printed = run(arrow_quant(&["quantize", DIGITS, text(&out)])).printed();
    contains(
        &printed,
        &[
            "tensor",
            "group",
            "bits per weight",
            "SQNR dB",
            "cosine",
            "blocks.0.fc2.weight",
            "kept: 25 tensors at their own dtype",
        ],
    );
    let position = |name: &str| printed.find(name).unwrap_or_else(|| panic!("{name} is missing in {printed}"));
    assert!(position("blocks.0.fc2.weight") < position("patch_embed.weight"), "worst first: {printed}");

    let manifest = manifest(&out);
    assert_eq!(manifest["tensors"].as_array().unwrap().len(), 52);
    let settings = &manifest["settings"];
    assert_eq!(
        (settings["bit_width"].as_i64(), settings["group_size"].as_i64(), settings["deployment_profile"].as_str()),
        (Some(4), Some(128), Some("local"))
    );
    for file in manifest["files"].as_array().unwrap() {
        let path = out.join(file["path"].as_str().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), file["bytes"].as_u64().unwrap(), "{}", path.display());
    }
    assert_eq!(
        fs::read(out.join("config.json")).unwrap(),
        fs::read(Path::new(DIGITS).join("config.json")).unwrap(),
        "copied unchanged"
    );
    assert_eq!(names(directory.path()), ["out"]);

    let printed = run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0.99"])).printed();
    contains(&printed, &["SQNR dB", "cosine similarity", "compression ratio"]);
    let printed = run(arrow_quant(&["inspect", text(&out)])).printed();
    contains(&printed, &["INT4", "BF16"]);
}

#[test]
fn validation_finds_the_figures_of_the_report() {
    let directory = TempDir::new().unwrap();
    let (out, report) = quantized(DIGITS, directory.path(), "out", &[]);
    let validation = run(arrow_quant(&["validate", DIGITS, text(&out), "--json"])).json();
    let (reported, validated) = (figures(&report), figures(&validation));
    assert_eq!(reported.len(), 27);
    assert_eq!(reported.len(), validated.len());
    for ((name, reported), (same_name, validated)) in reported.iter().zip(&validated) {
        assert_eq!(name, same_name);
        for (a, b) in reported.iter().zip(validated) {
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-6, "{name}: {reported:?} {validated:?}");
        }
    }
    for key in ["cosine_similarity", "sqnr_db", "compression_ratio"] {
        let (a, b) = (report[key].as_f64().unwrap(), validation[key].as_f64().unwrap());
        assert!((a - b).abs() < 1e-6, "{key}: {a} {b}");
    }
}

#[test]
fn a_floor_on_accuracy_names_the_tensors_below_it() {
    let directory = TempDir::new().unwrap();
    let (out, _) = quantized(DIGITS, directory.path(), "out", &[]);
    let below = run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0.999"]));
    contains(
        &below.error_with(3),
        &["of 27 quantized tensors are below a cosine similarity of 0.999: pos_embed", "more bits"],
    );
    let above = run(arrow_quant(&["validate", DIGITS, text(&out), "--min-accuracy", "0.99", "--quiet"]));
    assert_eq!(above.printed(), "");
}

#[test]
fn fewer_bits_are_fewer_bytes() {
    let directory = TempDir::new().unwrap();
    let sizes: Vec<u64> = ["2", "4", "8"]
        .into_iter()
        .map(|bits| {
            let (_, report) = quantized(DIGITS, directory.path(), bits, &["--bits", bits, "--group-size", "64"]);
            assert!(report["tensors"].as_array().unwrap().iter().any(|t| t["bits"].as_u64() == bits.parse().ok()));
            report["stored_bytes"].as_u64().unwrap()
        })
        .collect();
    // Of 1,249,664 quantized weights each two bits more are 312,416 bytes.
    assert!(sizes[0] + 300_000 < sizes[1] && sizes[1] + 600_000 < sizes[2], "{sizes:?}");
    let codes = |bits: &str| {
        let parts = files(&directory.path().join(bits)).into_iter().filter(|(name, _)| name.starts_with("weights/"));
        parts.map(|(_, bytes)| bytes).collect::<Vec<_>>()
    };
    assert_ne!(codes("2"), codes("4"));
    assert_ne!(codes("4"), codes("8"));
}

/// Bits per weight of everything stored, for a large tensor.
#[test]
fn what_is_stored_beside_the_codes_is_little() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("large.safetensors");
    write_large_model(&model, "BF16", 1 << 10);
    for (bits, group_size, most) in [("2", "64", 2.55), ("4", "128", 4.30), ("8", "64", 8.55)] {
        let arguments = ["--bits", bits, "--group-size", group_size];
        let (_, report) = quantized(text(&model), directory.path(), bits, &arguments);
        let found = report["bits_per_weight"].as_f64().unwrap();
        assert!(found <= most, "{bits} bits in groups of {group_size}: {found}");
    }
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_bytes() {
    let directory = TempDir::new().unwrap();
    let run_with = |name: &str, variable: &str, value: &str, arguments: &[&str]| {
        let out = directory.path().join(name);
        let arguments = [["quantize", DIGITS, text(&out), "--quiet"].as_slice(), arguments].concat();
        run(arrow_quant(&arguments).env(variable, value)).printed();
        files(&out)
    };
    for bits in ["2", "4", "8"] {
        let expected = run_with(&format!("scalar-{bits}"), "ARROW_QUANT_ISA", "scalar", &["--bits", bits]);
        for isa in Isa::available() {
            let found = run_with(&format!("{isa:?}-{bits}-again"), "ARROW_QUANT_ISA", isa.name(), &["--bits", bits]);
            assert!(found == expected, "{isa:?} and scalar differ at {bits} bits");
        }
        let found = run_with(&format!("one-{bits}"), "ARROW_QUANT_NUM_THREADS", "1", &["--bits", bits]);
        assert!(found == expected, "one thread and all differ at {bits} bits");
    }
}

/// More weights than one part holds, so that threads do share the work.
#[test]
fn parts_do_not_depend_on_the_number_of_threads() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("large.safetensors");
    write_large_model(&model, "BF16", 9 << 10);
    let run_with = |threads: &str| {
        let arguments = ["--threads", threads, "--method", "minmax"];
        files(&quantized(text(&model), directory.path(), threads, &arguments).0)
    };
    let (one, two) = (run_with("1"), run_with("2"));
    assert!(one.keys().filter(|name| name.starts_with("weights/")).count() > 1, "{:?}", one.keys());
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(two[name] == *bytes, "{name} differs");
    }
}

#[test]
fn what_is_kept_and_why() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("m.safetensors");
    write_model(
        &model,
        &[
            Tensor::gaussian("attention.weight", "F32", &[64, 64], 1),
            Tensor::gaussian("embedding.weight", "F16", &[64, 64], 2),
            Tensor::gaussian("norm", "BF16", &[64], 3),
            Tensor::counting("position_ids", "I64", &[1, 77]),
        ],
    );
    let (out, report) = quantized(text(&model), directory.path(), "out", &["--tensors", "^att.*weight$"]);
    let tensors = report["tensors"].as_array().unwrap();
    let shown = |t: &Value| format!("{} {} {}", t["tensor"], t["bits"], t["because"]).replace('"', "");
    assert_eq!(
        tensors.iter().map(shown).collect::<Vec<_>>(),
        [
            "attention.weight 4 bit_width",
            "embedding.weight null not selected",
            "norm null 1-D",
            "position_ids null I64 is not quantized"
        ]
    );
    // Kept tensors are the same bytes, of whatever dtype.
    let kept = format!(
        "SELECT o.tensor, o.weights = q.weights AS same \
         FROM weights('{}') o JOIN weights('{}') q ON o.tensor = q.tensor AND o.chunk = q.chunk \
         WHERE o.tensor <> 'attention.weight' ORDER BY o.tensor",
        text(&model),
        text(&out)
    );
    let printed = run(arrow_quant(&["sql", &kept, "--format", "csv"])).printed();
    assert_eq!(printed, "tensor,same\nembedding.weight,true\nnorm,true\nposition_ids,true\n");
}

#[test]
fn a_pipeline_is_quantized_component_by_component() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("pipeline");
    let tensors = |seed| [Tensor::gaussian("w", "F16", &[64, 64], seed), Tensor::gaussian("b", "F16", &[64], seed)];
    write_model(&model.join("unet/diffusion_pytorch_model.safetensors"), &tensors(1));
    write_model(&model.join("vae/diffusion_pytorch_model.safetensors"), &tensors(2));
    let index = r#"{"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "scheduler": ["diffusers", "S"]}"#;
    fs::write(model.join("model_index.json"), index).unwrap();
    fs::write(model.join("unet/config.json"), "{}").unwrap();
    fs::create_dir(model.join("scheduler")).unwrap();
    fs::write(model.join("scheduler/scheduler_config.json"), "{}").unwrap();

    let (out, report) = quantized(text(&model), directory.path(), "out", &[]);
    let shown = |t: &Value| format!("{}/{} {}", t["component"], t["tensor"], t["bits"]).replace('"', "");
    let tensors: Vec<_> = report["tensors"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(tensors, ["unet/b null", "unet/w 4", "vae/b null", "vae/w 4"]);
    let written: Vec<_> = files(&out).into_keys().collect();
    let expected = [
        "arrow_quant.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "weights/part-00000.parquet",
    ];
    assert_eq!(written, expected);
    run(arrow_quant(&["validate", text(&model), text(&out), "--min-accuracy", "0.9"])).printed();
    let query = "SELECT component, count(*) AS chunks FROM m.weights GROUP BY component ORDER BY component";
    let named = format!("m={}", text(&out));
    let printed = run(arrow_quant(&["sql", query, "--model", &named, "--format", "csv"])).printed();
    assert_eq!(printed, "component,chunks\nunet,2\nvae,2\n");
}

/// A kernel [out, in, height, width] has rows of in × height × width: its groups span the kernel's positions.
#[test]
fn a_convolution_kernel_has_rows_of_all_under_the_first_axis() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("conv.safetensors");
    write_model(&model, &[Tensor::gaussian("conv.weight", "F32", &[8, 4, 3, 3], 7)]);
    let (out, report) = quantized(text(&model), directory.path(), "out", &["--group-size", "32"]);
    // Eight rows of 36 weights: 144 bytes of codes, and two groups a row of 4 bytes each.
    assert_eq!(report["tensors"][0]["bytes"], 144 + 8 * 2 * 4);
    let query =
        format!("SELECT quantized['row_length'] AS r, quantized['length'] AS n FROM quantized('{}')", text(&out));
    assert_eq!(run(arrow_quant(&["sql", &query, "--format", "json"])).json(), serde_json::json!({"r": 36, "n": 288}));
}

#[test]
fn rows_as_json_and_csv() {
    let query = "SELECT tensor, shape, elements FROM m.tensors WHERE tensor LIKE 'proj_out%' ORDER BY tensor";
    let model = format!("m={DIGITS}");
    let printed = |format: &str| run(arrow_quant(&["sql", query, "--model", &model, "--format", format])).printed();
    assert_eq!(
        printed("json"),
        "{\"tensor\":\"proj_out.bias\",\"shape\":[4],\"elements\":4}\n\
         {\"tensor\":\"proj_out.weight\",\"shape\":[4,128],\"elements\":512}\n"
    );
    assert_eq!(printed("csv"), "tensor,shape,elements\nproj_out.bias,[4],4\nproj_out.weight,\"[4, 128]\",512\n");
    contains(&printed("table"), &["tensor", "proj_out.weight  [4, 128]       512\n", "2 rows\n"]);
}

/// As `| head -1` does.
#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let query = "SELECT to_floats(weights) FROM m.weights";
    let mut child = arrow_quant(&["sql", query, "--model", &format!("m={DIGITS}"), "--format", "csv"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // The pipe is closed by now, with megabytes still to come.
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    assert!(line.contains("to_floats"), "{line}");
}
