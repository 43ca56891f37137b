//! Runs that are cut short, by a kill, a signal or a full disk, and runs that go on from what those left: the result is
//! that of a run that was left alone, and what was finished is not done again.
#![cfg(unix)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::common::{contains, files, names, run, tensor};
use crate::interruption::{Files, Job, Left, NONE, PART_ROWS, Random, Running, fallback_tensors, file_id, gaussian};
use serde_json::Value;

/// Kills so many runs, each of which goes on from what the one before it left, at random points; one at least after
/// more than `late` parts. When a run comes to its end, the next begins anew.
fn kill_at_random(job: &Job, seed: u64, kills: usize, late: usize) {
    let started = Instant::now();
    let expected = job.expected(&["--threads", "1"]);
    let whole = started.elapsed();
    let mut random = Random(seed);
    let (mut killed, mut was_late) = (0, false);
    for runs in 0.. {
        assert!(runs < 10 * kills, "of {runs} runs only {killed} could be killed");
        let left = Left::of(job);
        let mut running = job.start(&["--resume"]);
        let (before, begun) = (job.records(), Instant::now());
        match random.below(3) {
            0 => {
                let records = before + 1 + random.below(4) as usize;
                running.until(|| job.records() >= records);
            }
            1 => {
                let records = late + 1 + random.below(3) as usize;
                running.until(|| job.records() >= records);
            }
            _ => {
                // The slowest instruction set takes twice as long as the others, more or less.
                let time = whole * random.below(1000) / 600;
                running.until(|| begun.elapsed() >= time);
            }
        }
        let outcome = running.kill();
        let has_ended = job.out().exists();
        if outcome.status.is_none() {
            killed += 1;
            was_late |= has_ended || job.records() > late;
        } else {
            is_accounted_for(&outcome.json(), &left, &expected);
        }
        left.only(&expected).is_untouched_in(&if has_ended { job.out() } else { job.partial() });
        if has_ended {
            job.is_complete(&expected);
        } else if killed >= kills && was_late {
            break;
        }
    }
    let left = Left::of(job);
    is_accounted_for(&job.resume(&[]), &left, &expected);
    left.only(&expected).is_untouched_in(&job.out());
    job.is_complete(&expected);
}

/// Asserts that a report counts the parts that were finished before: those that stay, and those that were to be written
/// anew.
#[track_caller]
fn is_accounted_for(report: &Value, left: &Left, expected: &Files) {
    assert_eq!(report["parts"].as_u64(), Some(parts(expected) as u64));
    if !left.is_begun {
        // The journal's first line may be missing, before the first part or after the last.
        return;
    }
    assert_eq!(report["resumed_parts"].as_u64(), Some(left.parts.len() as u64));
    assert_eq!(report["started_afresh"], Value::Null);
}

fn parts(files: &Files) -> usize {
    files.keys().filter(|name| name.starts_with("weights/")).count()
}

#[test]
fn runs_killed_at_random_points() {
    kill_at_random(&Job::of_parts(9), 1, 20, 0);
}

#[test]
fn runs_killed_at_random_points_while_a_tensor_falls_back() {
    kill_at_random(&Job::with_fallback(), 2, 12, 6);
}

/// The plan follows from a sample, and is adjusted after the first round: both must come out the same again.
#[test]
fn runs_killed_at_random_points_under_a_target() {
    let job = Job::new(&fallback_tensors(), &["--method", "minmax", "--target-bpw", "3.3", "--min-accuracy", "0.9"]);
    kill_at_random(&job, 3, 6, 0);
}

#[test]
fn a_fallback_writes_the_parts_of_its_tensor_again_and_no_others() {
    let job = Job::with_fallback();
    let expected = job.expected(&[]);
    let left = job.leave(6);
    let report = job.resume(&[]);
    let bits = ["a", "poor", "z"].map(|name| tensor(&report, name)["bits"].as_u64());
    assert_eq!(bits, [Some(3), Some(4), Some(3)]);
    let stay = left.only(&expected);
    assert!(stay.parts.len() >= 3, "{:?}", stay.parts);
    stay.is_untouched_in(&job.out());
    job.is_complete(&expected);
}

#[test]
fn without_resume_what_is_left_is_reported_and_left_alone() {
    let job = Job::of_parts(4);
    let left = job.leave(2);
    let before = files(&job.partial());
    for more in [NONE, &["--bits", "8"]] {
        let message = run(job.command(more)).error();
        let advice = ["out.partial` is left from a run that was interrupted", "--resume", "remove it"];
        contains(&message, &advice);
        assert!(files(&job.partial()) == before && !job.out().exists());
    }
    left.is_untouched_in(&job.partial());
}

#[test]
fn nothing_left_is_nothing_to_resume() {
    let job = Job::of_parts(1);
    let expected = job.expected(&[]);
    let report = job.resume(&[]);
    assert_eq!((&report["resumed_parts"], &report["started_afresh"]), (&Value::from(0), &Value::Null));
    // Again, on what is finished now.
    let again = job.resume(&[]);
    assert_eq!((&again["was_finished"], &again["resumed_parts"]), (&Value::from(true), &again["parts"]));
    contains(&run(job.command(&["--resume", "--bits", "8"])).error(), &["out` is finished already"]);
    job.is_complete(&expected);
}

#[test]
fn a_resumed_run_says_what_it_found() {
    let job = Job::of_parts(4);
    let left = job.leave(2);
    let printed = run(job.command(&["--resume"])).printed();
    contains(&printed, &["resumed", &format!("{} of 4 parts were finished before", left.parts.len())]);
    assert!(!printed.contains("started afresh"), "{printed}");
}

#[test]
fn with_another_setting_a_run_starts_afresh() {
    let job = Job::of_parts(4);
    let expected = job.expected(&["--bits", "8"]);
    job.leave(2);
    job.starts_afresh(&["--bits", "8"], "it was begun with another bit_width");
    job.is_complete(&expected);
    job.leave(2);
    let outcome = run(job.command(&["--bits", "8", "--group-size", "64", "--resume"]));
    contains(&outcome.stdout, &["started afresh", "of no use, it was begun with other bit_width, group_size"]);
    assert!(!outcome.stdout.contains("finished before"), "{outcome:?}");
}

#[test]
fn with_another_source_a_run_starts_afresh() {
    let job = Job::of_parts(4);
    job.leave(2);
    let weights = job.model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    job.starts_afresh(&[], "the model has changed since");
    let found = job.take_output();
    assert!(found == job.expected(&[]));
}

#[test]
fn a_damaged_part_alone_is_written_again() {
    let job = Job::of_parts(5);
    let expected = job.expected(&[]);
    let mut left = job.leave(3);
    let (path, id) = left.parts.pop_first().unwrap();
    let damaged = job.partial().join(&path);
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let report = job.resume(&[]);
    assert_eq!(report["resumed_parts"].as_u64(), Some(left.parts.len() as u64));
    assert_eq!(report["started_afresh"], Value::Null);
    left.is_untouched_in(&job.out());
    assert_ne!(file_id(&job.out().join(&path)), id);
    job.is_complete(&expected);
}

/// Threads, memory and streaming; and the instruction set, for `leave` uses the slowest.
#[test]
fn how_a_job_is_run_may_change() {
    let job = Job::of_parts(4);
    let expected = job.expected(&[]);
    let left = job.leave(2);
    let mut running = job.start(&["--resume", "--max-memory-limit-mb", "1000"]);
    running.until(|| job.records() > left.parts.len());
    running.kill();
    // It may have come to its end.
    if job.partial().exists() {
        left.is_untouched_in(&job.partial());
        let more = Left::of(&job);
        let report = job.resume(&["--threads", "2", "--enable-streaming=false", "--max-memory-limit-mb", "1200"]);
        is_accounted_for(&report, &more, &expected);
        more.is_untouched_in(&job.out());
    }
    left.is_untouched_in(&job.out());
    job.is_complete(&expected);
}

#[test]
fn a_run_on_the_output_of_another_is_refused() {
    let job = Job::of_parts(9);
    let expected = job.expected(&[]);
    let mut first = job.start(&[]);
    first.until(|| !job.journal().is_empty());
    first.signal("STOP");
    for more in [NONE, &["--resume"], &["--resume", "--bits", "8"]] {
        let message = run(job.command(more)).error();
        contains(&message, &["out.partial` belongs to a run that is still going on: wait for it"]);
    }
    first.signal("CONT");
    first.end().json();
    job.is_complete(&expected);
}

/// A limit on the size of files stands in for a disk that is full: two parts fit, those of a tensor that is kept do
/// not.
#[test]
fn a_disk_that_becomes_full_leaves_what_was_finished() {
    let tensors = [(gaussian("a", 3), 2 * PART_ROWS), (gaussian("kept", 4), 2 * PART_ROWS)];
    let job = Job::new(&tensors, &["--method", "minmax", "--sensitive-layer-names", "kept", "--threads", "1"]);
    let expected = job.expected(&[]);
    for more in [NONE, &["--resume"]] {
        let message = run(limited(6000, &job.command(more))).error();
        contains(&message, &["weights/part-0000", "larger than is allowed here", "--resume"]);
        assert!((1..=2).contains(&job.records()) && !job.out().exists(), "{:?}", job.journal());
    }
    let left = Left::of(&job);
    is_accounted_for(&job.resume(&[]), &left, &expected);
    left.is_untouched_in(&job.out());
    job.is_complete(&expected);
}

/// The same command, allowed files of so many blocks (512 bytes, 1,024 in some shells).
fn limited(blocks: u32, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!(r#"trap "" XFSZ; ulimit -f {blocks}; exec "$0" "$@""#)]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn a_resumed_run_that_cannot_copy_a_file_keeps_the_parts() {
    let job = Job::of_parts(4);
    fs::write(job.model.join("tokenizer.json"), vec![b' '; 1 << 20]).unwrap();
    let expected = job.expected(&[]);
    let left = job.leave(2);
    let message = run(limited(200, &job.command(&["--resume"]))).error();
    contains(&message, &["tokenizer.json", "larger than is allowed here", "--resume"]);
    is_accounted_for(&job.resume(&[]), &left, &expected);
    left.is_untouched_in(&job.out());
    job.is_complete(&expected);
}

#[test]
fn files_beside_the_weights_are_those_of_the_last_run() {
    let job = Job::of_parts(4);
    let tokenizer = job.model.join("tokenizer.json");
    fs::write(&tokenizer, "{}").unwrap();
    job.leave(2);
    fs::remove_file(&tokenizer).unwrap();
    fs::write(job.model.join("config.json"), r#"{"changed": true}"#).unwrap();
    job.resume(&[]);
    let found = job.take_output();
    assert!(found == job.expected(&[]), "{:?}", found.keys());
}

/// The first moments of a run, which a kill seldom meets.
#[test]
fn runs_killed_before_the_first_part() {
    let job = Job::of_parts(2);
    let expected = job.expected(&[]);
    job.leave(1);
    let journal = job.partial().join("journal.jsonl");
    let head = fs::read_to_string(&journal).unwrap().lines().next().unwrap().to_string();
    for text in [head.clone() + "\n", head, String::new()] {
        let _ = fs::remove_dir_all(job.partial());
        fs::create_dir(job.partial()).unwrap();
        fs::write(&journal, text).unwrap();
        assert_eq!(job.resume(&[])["resumed_parts"], 0);
        job.is_complete(&expected);
    }
    fs::create_dir(job.partial()).unwrap();
    assert_eq!(job.resume(&[])["resumed_parts"], 0);
}

/// Somebody makes the output while the run goes on: what is finished waits for the name to be free.
#[test]
fn an_output_that_appears_meanwhile_costs_no_part() {
    let job = Job::of_parts(4);
    let expected = job.expected(&[]);
    job.leave(2);
    fs::create_dir(job.out()).unwrap();
    fs::write(job.out().join("notes.txt"), "somebody's").unwrap();
    contains(&run(job.command(&["--resume"])).error(), &["out` exists already"]);
    fs::remove_dir_all(job.out()).unwrap();
    assert_ne!(job.resume(&[])["resumed_parts"], 0);
    job.is_complete(&expected);
}

#[test]
fn what_no_run_has_left_is_not_removed() {
    let job = Job::of_parts(1);
    fs::create_dir(job.partial()).unwrap();
    fs::write(job.partial().join("notes.txt"), "not to be had again").unwrap();
    for more in [NONE, &["--resume"]] {
        contains(&run(job.command(more)).error(), &["out.partial`"]);
        assert_eq!(names(&job.partial()), ["notes.txt"]);
    }
}

#[test]
fn an_interrupted_run_keeps_what_was_finished() {
    let job = Job::of_parts(5);
    let expected = job.expected(&[]);
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let outcome = (0..10).find_map(|_| {
            let mut running = job.start(&[]);
            running.until(|| job.records() >= 2);
            running.signal(signal);
            let outcome = running.end();
            if outcome.status == Some(0) {
                // It was faster than the signal.
                job.is_complete(&expected);
                return None;
            }
            Some(outcome)
        });
        let outcome = outcome.expect("a run that can be interrupted");
        assert_eq!(outcome.status, Some(status), "{outcome:?}");
        let partial = job.partial();
        let message = format!("the finished parts are in {}: continue with --resume, or remove it", partial.display());
        assert_eq!(outcome.stderr, format!("error: interrupted; {message}\n"));
        let left = Left::of(&job);
        assert!(left.parts.len() >= 2);
        is_accounted_for(&job.resume(&[]), &left, &expected);
        left.is_untouched_in(&job.out());
        job.is_complete(&expected);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays_within_the_limit() {
    /// In 10⁶ bytes: less than the model has.
    const LIMIT: u64 = 200;

    let job = Job::of_parts(36);
    let limit = LIMIT.to_string();
    let mut command = job.command(&["--threads", "8", "--quiet", "--max-memory-limit-mb", limit.as_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let status = format!("/proc/{}/status", running.0.id());
    let most = std::cell::Cell::new(0_u64);
    running.until(|| {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most.set(most.get().max(1024 * kibibytes.unwrap_or(0)));
        false
    });
    running.end().printed();
    assert!((1..LIMIT * 1_100_000).contains(&most.get()), "{} bytes", most.get());
}

/// Where a directory cannot be renamed, its files are moved one by one, the journal first.
#[test]
fn a_run_that_was_killed_while_it_moved_its_files_is_gone_on_with() {
    let job = Job::of_parts(4);
    let expected = job.expected(&[]);
    job.leave(2);
    let (out, partial) = (job.out(), job.partial());
    fs::create_dir_all(out.join("weights")).unwrap();
    fs::rename(partial.join("journal.jsonl"), out.join("journal.jsonl")).unwrap();
    let part = names(&partial.join("weights")).into_iter().find(|name| name.ends_with(".parquet")).unwrap();
    fs::rename(partial.join("weights").join(&part), out.join("weights").join(&part)).unwrap();
    contains(&run(job.command(&[])).error(), &["out` is left from a run that was interrupted"]);
    assert!(job.resume(&[])["resumed_parts"].as_u64() >= Some(2));
    assert!(!partial.exists());
    job.is_complete(&expected);
}
