//! What a job tells of its progress.
#![cfg(unix)]

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::interruption::Job;
use arrow_quant_v2::{
    Bits, DiffusionQuantConfig, JobOptions, Method, OnProgress, Progress, Stage, WeightType, quantize_model,
};

/// All that a job tells of its progress, on one thread, and the time that it took.
fn told(job: &Job, config: &DiffusionQuantConfig, interval: Duration) -> (Vec<Progress>, Duration) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let on_progress: OnProgress = {
        let told = Arc::clone(&told);
        Arc::new(move |progress: &Progress| told.lock().unwrap().push(progress.clone()))
    };
    let options = JobOptions { on_progress: Some(on_progress), progress_interval: interval, ..JobOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    runtime.block_on(quantize_model(&job.model, &job.out(), config, &options)).unwrap();
    let time = started.elapsed();
    fs::remove_dir_all(job.out()).unwrap();
    let told = std::mem::take(&mut *told.lock().unwrap());
    (told, time)
}

#[test]
fn progress_is_told_stage_by_stage_and_not_too_often() {
    let job = Job::with_fallback();
    let config = DiffusionQuantConfig {
        method: Method::MinMax,
        weight_type: WeightType::Int(Bits::Three),
        min_accuracy: 0.99,
        num_threads: 1,
        ..DiffusionQuantConfig::default()
    };
    let to_a_size = DiffusionQuantConfig { target_bpw: Some(4.5), min_accuracy: 0.85, ..config.clone() };
    let (never, often) = (Duration::from_secs(3600), Duration::from_millis(10));
    for (config, first) in
        [(config, [Stage::Quantizing, Stage::Requantizing]), (to_a_size, [Stage::Measuring, Stage::Quantizing])]
    {
        for interval in [Duration::ZERO, often, never] {
            let (told, time) = told(&job, &config, interval);
            // Each stage begins with nothing done, of no tensor.
            let stages: Vec<_> = told.chunk_by(|_, next| next.done > 0 || !next.tensor.is_empty()).collect();
            let order: Vec<_> = stages.iter().map(|stage| stage[0].stage).collect();
            assert_eq!(order[..2], first);
            for stage in &stages {
                is_a_stage(stage);
            }
            if interval.is_zero() {
                assert!(told.len() > 2 * stages.len(), "{told:?}");
            } else {
                let most = time.as_nanos() / interval.as_nanos() + 2 * stages.len() as u128;
                assert!(told.len() as u128 <= most, "{} calls, not {most}", told.len());
            }
        }
    }
}

/// Asserts that calls go from nothing done to all done.
#[track_caller]
fn is_a_stage(calls: &[Progress]) {
    let (first, last) = (&calls[0], &calls[calls.len() - 1]);
    assert!(calls.len() >= 2 && first.done == 0 && first.total > 0, "{first:?}");
    assert_eq!(last.done, last.total);
    for pair in calls.windows(2) {
        assert!(pair[0].done <= pair[1].done && pair[1].done <= pair[1].total, "{pair:?}");
        assert_eq!((pair[0].stage, pair[0].total), (pair[1].stage, pair[1].total));
    }
    for call in &calls[1..calls.len() - 1] {
        assert!(["a", "poor", "z"].contains(&call.tensor.as_str()), "{call:?}");
        assert!(call.rate.is_finite() && call.rate >= 0.0, "{call:?}");
    }
}
