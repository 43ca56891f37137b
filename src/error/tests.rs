//! Errors of each kind that name a setting, in the words of two front ends; and errors that come through DataFusion.

use std::io;
use std::path::PathBuf;

use serde_json::json;

use super::*;

/// Words that show where a sentence asks for which.
struct Marked;

impl Words for Marked {
    fn setting(&self, name: &str) -> String {
        format!("<{name}>")
    }

    fn advised(&self, name: &str) -> String {
        format!("<give {name}>")
    }

    fn switched(&self, name: &str, value: bool) -> String {
        format!("<{name} {value}>")
    }

    fn literals(&self) -> Literals {
        Literals::Python
    }

    fn list_of_tensors(&self) -> &'static str {
        "<list>"
    }
}

fn setting(field: &'static str, problem: SettingProblem) -> QuantError {
    QuantError::setting(field, problem)
}

fn output(problem: OutputProblem) -> QuantError {
    QuantError::Output { path: PathBuf::from("out"), problem }
}

fn unfinished() -> QuantError {
    let problem = QuantError::Io { path: PathBuf::from("part"), source: io::Error::from_raw_os_error(28) };
    QuantError::Unfinished { problem: Box::new(problem) }
}

#[test]
fn settings_are_named_by_the_front_end() {
    let unknown = |nearest: Option<&str>| SettingProblem::UnknownName {
        name: "x".to_string(),
        nearest: nearest.map(str::to_string),
    };
    let memory = |held| SettingProblem::MemoryLimit { limit_mb: 200, least_mb: 300, held };
    let patterns = [("a".to_string(), "4".to_string()), ("b".to_string(), "8".to_string())];
    let cases = [
        (
            setting("tensors", SettingProblem::SelectsNothing { pattern: "x".to_string() }),
            "<tensors> is 'x', which selects no tensor that can be quantized; see <list>",
        ),
        (setting("tensors", SettingProblem::BesidePlan), "<tensors> is set beside a plan"),
        (
            setting("target_bpw", SettingProblem::TooSmall { asked: 2.0, least: 3.5 }),
            "<target_bpw> is 2.000, allowed for this model: about 3.500 or more",
        ),
        (
            setting("target_bpw", SettingProblem::NotMet { target_mb: 2.0, below_floor: 0 }),
            "the target size of 2.000000 MB (<target_bpw>) cannot be met: allow a little more",
        ),
        (setting("target_bpw", SettingProblem::NotMet { target_mb: 2.0, below_floor: 3 }), "or lower <min_accuracy>"),
        (
            setting("tensors", unknown(Some("y"))),
            "<tensors> has 'x', which is not a tensor or module of the model; did you",
        ),
        (setting("tensors", unknown(None)), "see <list>"),
        (
            setting("layer_bit_widths", SettingProblem::Disagreement { patterns, tensor: "w".to_string() }),
            "<layer_bit_widths> of 'a' is 4 and of 'b' 8, and both match w",
        ),
        (
            setting("max_memory_limit_mb", memory(Held::Calibration)),
            "<max_memory_limit_mb> is 200, but the calibration is held in memory: allowed for it are 300 or more",
        ),
        (
            setting("max_memory_limit_mb", memory(Held::Model)),
            "the model is, because <enable_streaming> is false, held in memory: allowed for it are 300 or more, or \
             <enable_streaming true>",
        ),
        (output(OutputProblem::Exists), "`out` exists already: remove it, or choose another output"),
        (output(OutputProblem::Interrupted), "continue it with <resume true>, remove it, or choose another output"),
        (
            QuantError::UnknownModality { path: PathBuf::from("m") },
            "give <give modality> as text, code, image or audio",
        ),
        (
            QuantError::BelowFloor {
                tensor: "w".to_string(),
                bits: 2,
                shortfall: Shortfall::Sqnr { found: 3.0, floor: 20.0 },
            },
            "w quantized to 2 bits has an SQNR of 3.00 dB, below <min_sqnr_db> 20: give it more bits, or leave out <fail_fast>",
        ),
        (
            QuantError::Weights {
                tensor: "w".to_string(),
                problem: KernelError::NotFinite { index: 7, value: f64::NAN },
            },
            "keep the tensor as it is: name it in <give sensitive_layer_names>",
        ),
        (unfinished(), "the finished parts are kept: continue with <resume true>"),
    ];
    for (error, expected) in &cases {
        let message = error.worded(&Marked).to_string();
        assert!(message.contains(expected), "{message}\n{expected}");
        let message = error.to_string();
        assert!(!message.contains('<') && !message.contains("--"), "{message}");
    }
}

#[test]
fn display_names_fields() {
    assert_eq!(
        output(OutputProblem::Interrupted).to_string(),
        "`out` is left from a run that was interrupted: continue it with `resume: true`, remove it, or choose another output"
    );
    assert_eq!(
        unfinished().to_string(),
        "part: the disk is full: free space, or choose an output elsewhere; the finished parts are kept: continue with \
         `resume: true`"
    );
}

#[test]
fn refused_settings_are_named_as_their_place_names_them() {
    let value = |found| Problem::Value { found, allowed: Allowed::words("a size").or_null("for none") };
    let refused = |problem| Refused {
        others: [("switch", Origin::Flag("--switch".into()))].into(),
        ..Refused::new("size", problem)
    };
    let told = |refused: Refused| QuantError::from(refused).worded(&Marked).to_string();
    let file = || Origin::File("c.yaml".into());
    assert_eq!(told(refused(value(json!(null)))), "<size> is None, allowed: a size, or None for none");
    assert_eq!(
        told(refused(value(json!([true]))).at(file())),
        "c.yaml: size is [true], allowed: a size, or null for none"
    );
    assert_eq!(told(refused(value(json!(3))).at(Origin::Flag("--size".into()))), "--size is 3, allowed: a size");
    assert_eq!(told(refused(value(json!(3))).at(Origin::Variable("SIZE"))), "SIZE is '3', allowed: a size");
    let off = || Problem::IsOff { switch: "switch" };
    assert_eq!(
        told(refused(off()).at(file())),
        "c.yaml: size is set but --switch is false: set it to true, or leave out size"
    );
    assert_eq!(
        told(Refused::new("size", off())),
        "<size> is set but <switch> is False: set it to True, or leave out <size>"
    );
    let switch = Problem::Value { found: json!("yes"), allowed: Allowed::Switch };
    assert_eq!(told(Refused::new("size", switch)), "<size> is 'yes', allowed: True or False");
}

#[test]
fn what_does_not_fit_is_told_of_a_tensor_or_of_one_without_a_name() {
    let uneven = || ShapeProblem::UnequalRows { at: 2, found: 3, expected: 4 };
    let told = |tensor| QuantError::shape(tensor, uneven()).to_string();
    assert!(told(Some("w")).starts_with("w: the list at 2 has 3 elements, those before it 4: "));
    assert!(told(None).starts_with("the list at 2 has 3 elements"));
    let null = |tensor| QuantError::shape(tensor, ShapeProblem::Null { at: 1 }).to_string();
    assert!(
        null(Some("w")).starts_with("w has a NULL at 1: ")
            && null(Some("")).starts_with("the tensor has a NULL at 1: ")
    );
    let uncalibrated = QuantError::validation(None, ValidationProblem::Uncalibrated { quantized: "out".into() });
    let message = uncalibrated.worded(&Marked).to_string();
    assert!(message.starts_with("`out` was quantized without a calibration: leave out <calibration>, or"), "{message}");
}

#[test]
fn what_cannot_be_allowed_is_told_with_the_setting() {
    let error = arrow_quant_stores::AllowedPaths::new(["/no/such/place"]).unwrap_err();
    let error = QuantError::from(error);
    assert!(error.to_string().starts_with("allow: `/no/such/place` cannot be found"), "{error}");
    let message = error.worded(&Marked).to_string();
    assert!(message.starts_with("<allow>: `/no/such/place` cannot be found"), "{message}");
}

#[test]
fn errors_of_the_system_are_told_by_their_kind() {
    let told = |source| QuantError::io(Path::new("f"), source).to_string();
    assert_eq!(told(io::Error::from_raw_os_error(2)), "f: no such file or directory");
    assert_eq!(told(io::Error::from_raw_os_error(13)), "f: permission denied: check who may read and write it");
    // One of no kind keeps what the system says.
    assert_eq!(told(io::Error::from_raw_os_error(5)), format!("f: {}", io::Error::from_raw_os_error(5)));
    // One that is not the system's keeps its message, whatever is in it.
    assert_eq!(told(io::Error::new(io::ErrorKind::NotFound, "gone (os error 2)")), "f: gone (os error 2)");
}

#[test]
fn our_own_errors_come_through_a_query_as_they_went_in() {
    let own = QuantError::configuration("bits is 3");
    let through = DataFusionError::from(own).context("while planning");
    let shared = DataFusionError::Shared(Arc::new(through));
    assert_eq!(QuantError::from(shared).to_string(), "bits is 3");
}
