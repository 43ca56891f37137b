//! Every kind of error, met as a caller of the library meets it.

use std::fs;
use std::path::Path;

use crate::common::{DIGITS, Tensor, safetensors, write_model};
use arrow_quant_v2::{
    DiffusionQuantConfig, JobOptions, Model, QuantError, QuantizeReport, Result, quantize_model, session,
    validate_model,
};
use tempfile::TempDir;

async fn quantized(model: &Path, out: &Path, config: &DiffusionQuantConfig) -> Result<QuantizeReport> {
    quantize_model(model, out, config, &JobOptions::default()).await
}

#[tokio::test]
async fn every_kind_of_error_is_met() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let config = DiffusionQuantConfig::default();
    let digits = Path::new(DIGITS);

    let wrong = DiffusionQuantConfig { num_time_groups: 101, ..config.clone() };
    let error = quantized(digits, &path("out"), &wrong).await.unwrap_err();
    assert!(
        matches!(&error, QuantError::Refused(refused) if refused.field.as_deref() == Some("num_time_groups"))
            && error.to_string().starts_with("num_time_groups is 101"),
        "{error}"
    );

    let error = Model::open(&path("none")).unwrap_err();
    assert!(matches!(&error, QuantError::ModelNotFound { path: named, .. } if *named == path("none")), "{error}");

    let whole = safetensors(&[Tensor::gaussian("w", "F32", &[64, 64], 1)]);
    fs::write(path("cut.safetensors"), &whole[..whole.len() - 1]).unwrap();
    let error = Model::open(&path("cut.safetensors")).unwrap_err();
    assert!(matches!(&error, QuantError::Metadata { tensor: Some(tensor), .. } if tensor == "w"), "{error}");

    write_model(&path("a.safetensors"), &[Tensor::gaussian("w", "F32", &[64, 64], 1)]);
    write_model(&path("b.safetensors"), &[Tensor::gaussian("w", "F32", &[32, 128], 1)]);
    quantized(&path("a.safetensors"), &path("a"), &config).await.unwrap();
    let error = validate_model(&path("b.safetensors"), &path("a"), 1, None).await.unwrap_err();
    assert!(matches!(&error, QuantError::ShapeMismatch { tensor, .. } if tensor.as_deref() == Some("w")), "{error}");

    let strict = DiffusionQuantConfig { min_accuracy: 0.999, fail_fast: true, ..config.clone() };
    let error = quantized(digits, &path("out"), &strict).await.unwrap_err();
    assert!(
        matches!(&error, QuantError::BelowFloor { .. }) && error.to_string().contains("below min_accuracy 0.999"),
        "{error}"
    );

    let mut bad = Tensor::gaussian("w", "F32", &[64, 64], 1);
    bad.values[7] = f64::NAN;
    write_model(&path("nan.safetensors"), &[bad]);
    let error = quantized(&path("nan.safetensors"), &path("out"), &config).await.unwrap_err();
    assert!(matches!(&error, QuantError::Weights { tensor, .. } if tensor == "w"), "{error}");

    assert!(error.to_string().ends_with("keep the tensor as it is: name it in `sensitive_layer_names`"), "{error}");

    let nothing = DiffusionQuantConfig { tensors: Some("nothing".to_string()), ..config.clone() };
    let error = quantized(digits, &path("out"), &nothing).await.unwrap_err();
    assert!(matches!(&error, QuantError::Setting { field: "tensors", .. }), "{error}");
    assert!(error.to_string().starts_with("tensors is 'nothing', which selects no tensor"), "{error}");

    let error = quantized(digits, &path("a"), &config).await.unwrap_err();
    assert!(matches!(&error, QuantError::Output { path: named, .. } if *named == path("a")), "{error}");

    let error = quantized(digits, &path("no/out"), &config).await.unwrap_err();
    assert!(matches!(&error, QuantError::Io { path: named, .. } if named.starts_with(path("no"))), "{error}");

    let error = QuantError::from(session(1).unwrap().sql("SELECT nothing").await.unwrap_err());
    assert!(matches!(&error, QuantError::Query(_)), "{error}");
    assert!(!path("out").exists() && !path("out.partial").exists());
}
