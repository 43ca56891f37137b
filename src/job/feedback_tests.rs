//! Jobs whose method is ldlq.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::planned::{Planned, plan};
use super::query::TaskQuery;
use super::task::{PartTask, TaskModel};
use super::{JobOptions, plan_hash, quantize_model};
use crate::calibration::moment_tests::{MomentRow, triangle, write_calibration, write_moments};
use crate::model::tests::directory;
use crate::targets::TargetName;
use crate::{Calibration, DiffusionQuantConfig, Model};

/// An F32 model of three layers: the first two have the same input.
fn model() -> tempfile::TempDir {
    let tensors = [("a", [200, 64]), ("b", [40, 64]), ("c", [40, 32])];
    let (mut header, mut end) = (Vec::new(), 0);
    for (name, shape) in &tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
    }
    let header = format!("{{{}}}", header.join(","));
    let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    for i in 0..end / 4 {
        file.extend(((i as f32 * 12.9898).sin() * 43.75).fract().to_le_bytes());
    }
    directory(&[("model.safetensors", file), ("config.json", b"{}".to_vec())])
}

/// Second moments of the input of `a` and `b`, in two blocks, over two timesteps.
fn rows(correlation: f32) -> Vec<MomentRow<'static>> {
    let row = |timestep, start| ("x", &["a", "b"] as &[&str], timestep, 100, 64, start, 32, triangle(32, correlation));
    vec![row(0, 0), row(0, 32), row(1, 0), row(1, 32)]
}

fn config(method: &str) -> DiffusionQuantConfig {
    let config = DiffusionQuantConfig { num_threads: 2, min_accuracy: 0.0, ..DiffusionQuantConfig::default() };
    let config = DiffusionQuantConfig { skip_sensitive_layers: false, ..config };
    DiffusionQuantConfig { method: method.parse().unwrap(), group_size: 32.try_into().unwrap(), ..config }
}

fn calibrated(path: &Path) -> JobOptions {
    let calibration = Calibration::open(path, 100).unwrap();
    JobOptions { calibration: Some(Arc::new(calibration)), ..JobOptions::default() }
}

/// A model, its calibration table and its second moments.
fn recorded(rows: &[MomentRow<'_>]) -> (tempfile::TempDir, PathBuf) {
    let model = model();
    let calibration = write_calibration(model.path(), &[("a", 64), ("b", 64), ("c", 32)]);
    write_moments(&calibration.with_extension("moments.parquet"), rows);
    (model, calibration)
}

async fn planned(model: &Path, calibration: &Path) -> Planned {
    plan(model, &config("ldlq"), &calibrated(calibration), TargetName::default()).await.unwrap()
}

fn tasks(planned: &Planned) -> Vec<PartTask> {
    let model = &planned.plan.model;
    let model = TaskModel { location: model.absolute_path().unwrap(), fingerprint: model.fingerprint().unwrap() };
    PartTask::all(&planned.plan, &planned.parts, &model)
}

/// The notes of a plan on feedback, and the tensors that have it.
async fn notes(rows: &[MomentRow<'_>]) -> (Vec<String>, Vec<String>) {
    let (model, calibration) = recorded(rows);
    let Planned { plan, notes, .. } = planned(model.path(), &calibration).await;
    let has_feedback = |channels: &crate::plan::Channels| channels.feedback.is_some();
    let fed = plan.tensors.iter().filter(|plan| plan.channels.as_deref().is_some_and(has_feedback));
    let fed = fed.map(|plan| plan.tensor.clone()).collect();
    (notes.into_iter().filter(|note| note.contains("second moments")).collect(), fed)
}

#[tokio::test(flavor = "multi_thread")]
async fn ldlq_changes_codes_where_there_are_moments_whatever_the_number_of_threads() {
    let (model, calibration) = recorded(&rows(0.9));
    let mut files = Vec::new();
    for (name, method, threads) in [("one", "ldlq", 1), ("three", "ldlq", 3), ("mse", "mse", 1)] {
        let out = model.path().join(name);
        let config = DiffusionQuantConfig { num_threads: threads, enable_spatial: false, ..config(method) };
        let report = quantize_model(model.path(), &out, &config, &calibrated(&calibration)).await.unwrap();
        let of = |tensor: &str| report.report.tensors.iter().find(|t| t.tensor == tensor).unwrap().sqnr_db;
        files.push((fs::read(out.join("weights/part-00000.parquet")).unwrap(), [of("a"), of("b"), of("c")]));
    }
    let [one, three, mse] = &files[..] else { panic!("three jobs") };
    assert!(one == three);
    assert!(one.1[0] < mse.1[0] && one.1[1] < mse.1[1], "weights lose more, so that outputs lose less");
    assert_eq!(one.1[2], mse.1[2], "it has no second moments");
}

#[tokio::test]
async fn tasks_with_feedback_write_apart_what_they_write_together() {
    let (model, calibration) = recorded(&rows(0.9));
    let tasks = tasks(&planned(model.path(), &calibration).await);
    let json = serde_json::to_string(&tasks).unwrap();
    assert!(json.len() < 20_000, "a task names its second moments and does not hold them");
    let read: Vec<PartTask> = serde_json::from_str(&json).unwrap();
    assert_eq!(read, tasks);
    let mut records = Vec::new();
    for (name, tasks) in [("together", tasks), ("apart", read)] {
        let out = model.path().join(name);
        fs::create_dir_all(out.join("weights")).unwrap();
        let opened = Arc::new(Model::open(model.path()).unwrap());
        let query = TaskQuery::new(&opened, tasks.clone()).await.unwrap();
        let writer = TargetName::default().target().part_writer(&out, 0).unwrap();
        records.push(query.run(0, writer, |_| ()).await.unwrap());
    }
    assert_eq!(records[0], records[1]);
}

#[tokio::test]
async fn other_moments_make_another_plan_and_fail_a_task_of_the_first() {
    let (model, calibration) = recorded(&rows(0.9));
    let first = planned(model.path(), &calibration).await;
    write_moments(&calibration.with_extension("moments.parquet"), &rows(0.8));
    let other = planned(model.path(), &calibration).await;
    assert_ne!(plan_hash(&first.plan.tensors), plan_hash(&other.plan.tensors));
    assert_ne!(tasks(&first)[0].key, tasks(&other)[0].key);
    let out = model.path().join("out");
    fs::create_dir_all(out.join("weights")).unwrap();
    let query = TaskQuery::new(&first.plan.model, tasks(&first)).await.unwrap();
    let writer = TargetName::default().target().part_writer(&out, 0).unwrap();
    let error = query.run(0, writer, |_| ()).await.unwrap_err().to_string();
    assert!(error.starts_with("the second moments of x in `") && error.ends_with("have changed: run again"), "{error}");
}

#[tokio::test]
async fn moments_that_are_of_no_use_are_noted_by_tensor() {
    let without = "1 quantized tensor has no second moments: its method is mse";
    assert_eq!(notes(&rows(0.9)).await, (vec![without.to_string()], vec!["a".to_string(), "b".to_string()]));
    let mut few = rows(0.9);
    few.iter_mut().for_each(|row| row.3 = 10);
    let (found, fed) = notes(&few).await;
    let expected =
        "a and b: its second moments are of 20 samples, fewer than the 32 channels of a block, so its method is mse";
    assert_eq!((found[0].as_str(), fed.len()), (expected, 0));
    let mut damped = rows(0.9);
    damped[0].7[1] = 50.0;
    damped[2].7[1] = 50.0;
    let (found, fed) = notes(&damped).await;
    assert_eq!(
        found[0],
        "a and b: the second moments of channel 1 are not positive definite, or nearly so, so its method is mse"
    );
    assert_eq!(fed.len(), 0);
    let mut wrong = rows(0.9);
    wrong[0].7[5] = f32::NAN;
    let (found, _) = notes(&wrong).await;
    let expected = "the second moments of channel 0 are not finite, or negative on the diagonal, so its method is mse";
    assert!(found[0].contains(expected), "{found:?}");
}

#[tokio::test]
async fn moments_that_are_missing_or_of_another_model_are_refused() {
    let (model, calibration) = recorded(&rows(0.9));
    let refused = async |options: &JobOptions| {
        plan(model.path(), &config("ldlq"), options, TargetName::default()).await.err().unwrap().to_string()
    };
    let message = refused(&JobOptions::default()).await;
    assert!(message.starts_with("method is ldlq, which needs a calibration table with second moments"), "{message}");
    let options = calibrated(&calibration);
    let file = calibration.with_extension("moments.parquet");
    let mut other = rows(0.9);
    other.iter_mut().for_each(|row| row.1 = &["a", "bb"]);
    write_moments(&file, &other);
    let message = refused(&options).await;
    assert!(message.contains("tensor 'bb'") && message.contains("did you mean 'b'?"), "{message}");
    other.iter_mut().for_each(|row| row.1 = &["a", "c"]);
    write_moments(&file, &other);
    let message = refused(&options).await;
    let expected = "the second moments of x are of it, with 64 channels; its rows have 32 weights";
    assert!(message.contains("tensor 'c'") && message.ends_with(expected), "{message}");
    fs::remove_file(&file).unwrap();
    let message = refused(&options).await;
    assert!(message.contains("calibration.moments.parquet`: record them with the calibration"), "{message}");
}
