//! Tasks as another process would run them: read from JSON, with a model opened for each, in any order.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::manifest::{MANIFEST, Manifest, Reason};
use arrow_quant_kernels::KernelError;
use datafusion::error::DataFusionError;

use super::planned::{Planned, plan};
use super::query::TaskQuery;
use super::task::{PartRecord, PartTask, TaskModel};
use super::{JobOptions, is_final, plan_hash, quantize_model};
use crate::config::Format;
use crate::model::tests::directory;
use crate::plan::Channels;
use crate::report::{OnProgress, Progress, Stage};
use crate::targets::TargetName;
use crate::{DiffusionQuantConfig, Model, OutputProblem, QuantError, Result};

/// A BF16 model of three parts: its second tensor is in all of them, and its last is kept.
fn model() -> tempfile::TempDir {
    finetune(1)
}

/// The same with other weights.
fn finetune(seed: u32) -> tempfile::TempDir {
    let tensors = [("a", vec![512, 1024]), ("b", vec![10_000, 1024]), ("c", vec![300, 1024]), ("d", vec![100])];
    let (mut header, mut end) = (Vec::new(), 0);
    for (name, shape) in &tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.push(format!(r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
    }
    header.push(format!(r#""__metadata__":{{"seed":"{seed}"}}"#));
    let header = format!("{{{}}}", header.join(","));
    let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let mut state = seed;
    for _ in 0..end / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Either sign, from an eighth to 2.
        let bits = ((state >> 16) & 0x8000 | (0x3e00 + (state >> 16) % 0x1ff)) as u16;
        file.extend(bits.to_le_bytes());
    }
    directory(&[("model.safetensors", file), ("config.json", b"{}".to_vec())])
}

fn config() -> DiffusionQuantConfig {
    let config = DiffusionQuantConfig { num_threads: 2, min_accuracy: 0.0, ..DiffusionQuantConfig::default() };
    DiffusionQuantConfig { method: "minmax".parse().unwrap(), ..config }
}

/// The value that comes out of its JSON.
fn through_json<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> T {
    let read = serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap();
    assert_eq!(&read, value);
    read
}

/// Runs some of the tasks of a query into a directory.
async fn run(query: &TaskQuery, tasks: &[PartTask], out: &Path) -> Result<Vec<PartRecord>> {
    fs::create_dir_all(out.join("weights")).unwrap();
    let mut records = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        let target: TargetName = task.target.parse().unwrap();
        let writer = target.target().part_writer(out, task.part)?;
        records.push(query.run(index, writer, |_| ()).await?);
    }
    Ok(records)
}

/// Runs each task by itself, with a model of its own, last first; gives the records in the order of the parts.
async fn run_apart(tasks: &[PartTask], model: &Path, out: &Path) -> Vec<PartRecord> {
    let mut records = Vec::new();
    for task in tasks.iter().rev() {
        let task = through_json(task);
        let model = Arc::new(Model::open(model).unwrap());
        let query = TaskQuery::new(&model, vec![task.clone()]).await.unwrap();
        records.extend(run(&query, &[task], out).await.unwrap().iter().map(through_json));
    }
    records.reverse();
    records
}

/// The tasks of the job, and its model.
async fn tasks(path: &Path) -> (Arc<Model>, Vec<PartTask>) {
    let Planned { plan, parts, .. } =
        plan(path, &config(), &JobOptions::default(), TargetName::default()).await.unwrap();
    let model =
        TaskModel { location: plan.model.absolute_path().unwrap(), fingerprint: plan.model.fingerprint().unwrap() };
    (Arc::clone(&plan.model), PartTask::all(&plan, &parts, &model))
}

#[tokio::test]
async fn tasks_run_apart_write_what_the_job_writes() {
    let model = model();
    let (job, apart) = (model.path().join("job"), model.path().join("apart"));
    quantize_model(model.path(), &job, &config(), &JobOptions::default()).await.unwrap();
    let manifest = Manifest::parse(&fs::read_to_string(job.join(MANIFEST)).unwrap()).unwrap();

    let (_, tasks) = tasks(model.path()).await;
    assert_eq!(tasks.len(), 3);
    let records = run_apart(&tasks, model.path(), &apart).await;
    let files: Vec<_> = records.iter().map(|record| record.file.clone()).collect();
    assert_eq!(files, manifest.files);
    for file in &files {
        let read = |out: &Path| fs::read(out.join(&file.path)).unwrap();
        assert!(read(&apart) == read(&job), "{}", file.path);
    }
    for tensor in &manifest.tensors {
        let written = records.iter().flat_map(|record| &record.tensors).filter(|t| t.tensor == tensor.tensor);
        assert_eq!(written.map(|written| written.bytes).sum::<u64>(), tensor.bytes, "{}", tensor.tensor);
    }
}

/// With a calibration, the query of all tasks has arguments that those of some tasks alone have not.
#[tokio::test]
async fn tasks_run_apart_write_what_they_write_together_with_channels() {
    let model = model();
    let (source, mut tasks) = tasks(model.path()).await;
    let channels = Channels::new((0..1024).map(|i| 0.1 + i as f32 / 3.0).collect(), Vec::new());
    let channels = Arc::new(channels);
    for tensor in tasks.iter_mut().flat_map(|task| &mut task.tensors).filter(|tensor| tensor.tensor == "a") {
        tensor.channels = Some(Arc::clone(&channels));
    }
    let query = TaskQuery::new(&source, tasks.clone()).await.unwrap();
    let together = run(&query, &tasks, &model.path().join("together")).await.unwrap();
    assert_eq!(run_apart(&tasks, model.path(), &model.path().join("apart")).await, together);
}

#[tokio::test]
async fn tasks_that_do_not_belong_together_are_refused() {
    let model = model();
    let (source, tasks) = tasks(model.path()).await;
    let message = async |tasks: Vec<PartTask>| match TaskQuery::new(&source, tasks).await {
        Ok(_) => panic!("the tasks were taken"),
        Err(error) => error.to_string(),
    };
    let mut unknown = tasks.clone();
    unknown[0].tensors[0].tensor = "other".to_string();
    assert!(message(unknown).await.ends_with("lacks tensors of a part: it is not the model that was planned"));
    let mut beyond = tasks.clone();
    beyond[0].tensors[0].chunks.end = 1 << 20;
    assert!(message(beyond).await.ends_with("lacks tensors of a part: it is not the model that was planned"));
    let mut other = tasks.clone();
    other[1].tensors[0].choice = None;
    assert!(message(other).await.starts_with("the parts to be written are of different plans for b"));
    let mut method = tasks;
    method[1].method = "mse".parse().unwrap();
    assert!(message(method).await.starts_with("the parts to be written are of different jobs"));
}

/// The function meets the weight in a batch of a part that begins within the tensor.
#[tokio::test]
async fn a_weight_that_is_refused_is_named_by_its_place_in_the_tensor() {
    const INDEX: usize = 9_000_000;
    let model = model();
    let file = model.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let at = 8 + header + 2 * (512 * 1024 + INDEX);
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let out = model.path().join("out");
    let error = quantize_model(model.path(), &out, &config(), &JobOptions::default()).await.unwrap_err();
    assert!(matches!(error, QuantError::Weights { .. }), "{error:?}");
    assert!(error.to_string().starts_with("b: weight 9000000 is NaN"), "{error}");
    assert!(!model.path().join("out.partial").exists(), "another run would fail the same way");
}

#[tokio::test]
async fn a_target_can_be_one_file() {
    let model = model();
    let out = model.path().join("model.lines");
    let options = JobOptions { target: Some("one-file".parse().unwrap()), ..JobOptions::default() };
    let done = quantize_model(model.path(), &out, &config(), &options).await.unwrap();
    assert_eq!(done.parts, 1);
    let text = fs::read_to_string(&out).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"a 0"));
    assert_eq!(lines.last(), Some(&"d 0"));
    assert_eq!(lines.iter().filter(|line| line.starts_with("b ")).count(), 10_000 / 64 + 1, "chunks of all parts");
    assert!(!model.path().join("model.lines.partial").exists(), "nothing else is left");
    let error = quantize_model(model.path(), &out, &config(), &options).await.unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
}

#[tokio::test]
async fn tasks_of_another_model_or_program_are_refused() {
    let (planned, other) = (model(), finetune(2));
    let (_, tasks) = tasks(planned.path()).await;
    let message = async |model: &Path, tasks: Vec<PartTask>| {
        let model = Arc::new(Model::open(model).unwrap());
        TaskQuery::new(&model, tasks).await.err().map(|error| error.to_string())
    };
    assert_eq!(message(&tasks[0].model.location, tasks.clone()).await, None);
    let refused = message(other.path(), tasks.clone()).await.unwrap();
    let expected = "is not the model that was planned, or has changed since: plan `";
    assert!(refused.contains(expected), "a model of the same names and shapes: {refused}");
    let mut older = tasks;
    older[1].program = "arrow-quant 0.0.1, format version 1".to_string();
    let refused = message(planned.path(), older).await.unwrap();
    assert!(
        refused.starts_with("part 1 was planned by arrow-quant 0.0.1, format version 1, and this is "),
        "{refused}"
    );
}

#[test]
fn tasks_of_widths_that_are_not_known_are_refused() {
    let task = r#"{"component":"","tensor":"w","chunks":{"start":0,"end":1},"choice":{"type":"int99","group_size":64},"channels":null}"#;
    let message = serde_json::from_str::<super::task::TaskTensor>(task).unwrap_err().to_string();
    assert!(message.contains("int99") && message.contains("type"), "{message}");
}

#[tokio::test]
async fn a_reason_is_no_part_of_a_plan_that_is_resumed() {
    let model = model();
    let Planned { plan, .. } =
        plan(model.path(), &config(), &JobOptions::default(), TargetName::default()).await.unwrap();
    let (mut reasons, mut choices) = (plan.tensors.clone(), plan.tensors.clone());
    reasons[0].reason = Reason::Plan;
    choices[0].choice = None;
    assert_eq!(plan_hash(&reasons), plan_hash(&plan.tensors));
    assert_ne!(plan_hash(&choices), plan_hash(&plan.tensors));
}

#[test]
fn parts_are_kept_unless_another_run_fails_the_same_way() {
    let exhausted = DataFusionError::ResourcesExhausted("no memory".to_string());
    assert!(!is_final(&QuantError::from(exhausted)));
    assert!(!is_final(&QuantError::io(Path::new("part"), std::io::Error::from_raw_os_error(28))));
    let problem = KernelError::NotFinite { index: 1, value: f64::NAN };
    assert!(is_final(&QuantError::Weights { tensor: "w".to_string(), problem }));
}

/// Quantizes a model whose file is changed once its weights are being quantized; the error, and what is left beside it.
async fn quantized_while(change: fn(&Path)) -> (QuantError, Vec<String>) {
    let model = model();
    let directory = tempfile::tempdir().unwrap();
    let file = model.path().join("model.safetensors");
    let is_changed = std::sync::atomic::AtomicBool::new(false);
    let on_progress: OnProgress = Arc::new(move |progress: &Progress| {
        let is_under_way = progress.stage == Stage::Quantizing && progress.done > 0;
        if is_under_way && !is_changed.swap(true, std::sync::atomic::Ordering::Relaxed) {
            change(&file);
        }
    });
    let progress_interval = std::time::Duration::ZERO;
    let options = JobOptions { on_progress: Some(on_progress), progress_interval, ..JobOptions::default() };
    let config = DiffusionQuantConfig { num_threads: 1, ..config() };
    let error = quantize_model(model.path(), &directory.path().join("out"), &config, &options).await.unwrap_err();
    let left = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (error, left.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_written_to_or_cut_in_a_job_is_named_and_nothing_is_left() {
    let written: fn(&Path) = |path| {
        let bytes = vec![0; fs::metadata(path).unwrap().len() as usize];
        fs::write(path, bytes).unwrap();
    };
    let cut: fn(&Path) = |path| fs::File::options().write(true).open(path).unwrap().set_len(50_000).unwrap();
    for change in [written, cut] {
        let (error, left) = quantized_while(change).await;
        assert!(matches!(&error, QuantError::Changed { path, .. } if path.ends_with("model.safetensors")), "{error:?}");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_is_written_to_in_its_place() {
    let (model, directory) = (model(), tempfile::tempdir().unwrap());
    let out = directory.path().join("out");
    fs::create_dir_all(out.join("lost+found")).unwrap();
    // What only the directory that was given has.
    let before = same_file(&out);
    quantize_model(model.path(), &out, &config(), &JobOptions::default()).await.unwrap();
    assert_eq!(same_file(&out), before);
    assert!(out.join(MANIFEST).is_file() && !out.join("journal.jsonl").exists() && out.join("lost+found").is_dir());
    // Nothing else is replaced: neither a model without being told to, nor what is no model.
    let error = quantize_model(model.path(), &out, &config(), &JobOptions::default()).await.unwrap_err();
    assert!(matches!(error, QuantError::Output { problem: OutputProblem::Exists, .. }), "{error:?}");
    let mut other = config();
    other.set("bit_width", &serde_json::json!(8)).unwrap();
    let options = JobOptions { overwrite: true, ..JobOptions::default() };
    quantize_model(model.path(), &out, &other, &options).await.unwrap();
    let manifest = Manifest::parse(&fs::read_to_string(out.join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest.settings["bit_width"], 8);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    fs::remove_file(out.join(MANIFEST)).unwrap();
    assert!(quantize_model(model.path(), &out, &other, &options).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn to_go_on_with_a_finished_output_is_to_do_nothing() {
    let (model, directory) = (model(), tempfile::tempdir().unwrap());
    let out = directory.path().join("out");
    let options = JobOptions { resume: true, ..JobOptions::default() };
    let first = quantize_model(model.path(), &out, &config(), &options).await.unwrap();
    let again = quantize_model(model.path(), &out, &config(), &options).await.unwrap();
    assert!(!first.was_finished && again.was_finished);
    assert_eq!((again.parts, again.resumed_parts), (first.parts, first.parts));
    let other = DiffusionQuantConfig { method: "mse".parse().unwrap(), ..config() };
    let error = quantize_model(model.path(), &out, &other, &options).await.unwrap_err();
    assert!(error.to_string().contains("is finished already, and was made of another model"), "{error}");
}

#[tokio::test]
async fn the_name_of_a_file_is_refused_for_a_directory() {
    let (model, directory) = (model(), tempfile::tempdir().unwrap());
    let config = DiffusionQuantConfig { format: Some(Format::ArrowQuant), ..config() };
    for name in ["m.gguf", "m.safetensors", "M.GGUF"] {
        let out = directory.path().join(name);
        let error = quantize_model(model.path(), &out, &config, &JobOptions::default()).await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains(name) && message.contains("a directory (arrow-quant)"), "{message}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[cfg(unix)]
fn same_file(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

#[cfg(not(unix))]
fn same_file(path: &Path) -> bool {
    path.is_dir()
}
