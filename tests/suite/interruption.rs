//! Runs that are cut short and gone on with: how to start, watch, signal and kill one, and what it leaves.
#![cfg(unix)]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Outcome, Tensor, arrow_quant, contains, files, names, run, text, write_tall_model};
use serde_json::Value;
use tempfile::TempDir;

/// Rows of 4,096 weights that make a part.
pub(crate) const PART_ROWS: usize = 1 << 10;

/// Files by their paths.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// No more arguments.
pub(crate) const NONE: &[&str] = &[];

/// A job that is run again and again, in a directory of its own.
pub(crate) struct Job {
    pub directory: TempDir,
    pub model: PathBuf,
    pub arguments: Vec<&'static str>,
}

impl Job {
    pub(crate) fn new(tensors: &[(Tensor, usize)], arguments: &[&'static str]) -> Self {
        let directory = TempDir::new().unwrap();
        let model = directory.path().join("model");
        write_tall_model(&model.join("model.safetensors"), tensors);
        fs::write(model.join("config.json"), "{}").unwrap();
        Self { directory, model, arguments: arguments.to_vec() }
    }

    /// A job of so many parts that are all alike.
    pub(crate) fn of_parts(parts: usize) -> Self {
        Self::new(&[(gaussian("w", 1), parts * PART_ROWS)], &["--method", "minmax"])
    }

    /// A job of six parts; the half of them that have weights of `poor` are written twice, as it falls back to 4 bits.
    pub(crate) fn with_fallback() -> Self {
        Self::new(&fallback_tensors(), &["--method", "minmax", "--bits", "3", "--min-accuracy", "0.99"])
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.directory.path().join("out.partial")
    }

    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let mut command = arrow_quant(&["quantize", text(&self.model), text(&self.out())]);
        command.args(&self.arguments).args(more);
        command
    }

    /// Starts a run that is as slow as can be, to be cut short.
    pub(crate) fn start(&self, more: &[&str]) -> Running {
        let mut command = self.command(&[["--threads", "1", "--json"].as_slice(), more].concat());
        command.env("ARROW_QUANT_ISA", "scalar").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// The files of a run that is left alone, which are then removed.
    #[track_caller]
    pub(crate) fn expected(&self, more: &[&str]) -> Files {
        run(self.command(&[["--quiet"].as_slice(), more].concat())).printed();
        self.take_output()
    }

    /// Resumes, with a warning that what was left is of no use.
    #[track_caller]
    pub(crate) fn starts_afresh(&self, more: &[&str], reason: &str) {
        let outcome = run(self.command(&[&["--json", "--resume"], more].concat()));
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        contains(&outcome.stderr, &["warning: `", &format!("out.partial` is begun anew: {reason}\n")]);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((&report["resumed_parts"], &report["started_afresh"]), (&Value::from(0), &Value::from(reason)));
    }

    /// Goes on with what is left, to the end.
    #[track_caller]
    pub(crate) fn resume(&self, more: &[&str]) -> Value {
        run(self.command(&[["--resume", "--json"].as_slice(), more].concat())).json()
    }

    pub(crate) fn take_output(&self) -> Files {
        let found = files(&self.out());
        fs::remove_dir_all(self.out()).unwrap();
        found
    }

    /// The complete lines of the journal.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.partial().join("journal.jsonl")).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Parts that were finished, counted as often as they were.
    pub(crate) fn records(&self) -> usize {
        self.journal().len().saturating_sub(1)
    }

    /// Leaves what a run that was killed leaves, with so many parts finished or a few more.
    #[track_caller]
    pub(crate) fn leave(&self, records: usize) -> Left {
        for _ in 0..10 {
            let mut running = self.start(&[]);
            running.until(|| self.records() >= records);
            let outcome = running.kill();
            if outcome.status.is_none() && self.partial().exists() {
                return Left::of(self);
            }
            // It was faster than the signal.
            fs::remove_dir_all(self.out()).unwrap_or_else(|_| panic!("{outcome:?}"));
        }
        panic!("no run can be cut short");
    }

    /// Asserts that the output is complete and as expected, and removes it.
    #[track_caller]
    pub(crate) fn is_complete(&self, expected: &Files) {
        assert_eq!(names(self.directory.path()), ["model", "out"]);
        let found = self.take_output();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, bytes) in expected {
            assert!(found[name] == *bytes, "{name} is not that of a run that was left alone");
        }
    }
}

/// A row of Gaussian weights.
pub(crate) fn gaussian(name: &'static str, seed: u64) -> Tensor {
    Tensor::gaussian(name, "BF16", &[1, 4096], seed)
}

/// Three bits are enough for two of them.
pub(crate) fn fallback_tensors() -> [(Tensor, usize); 3] {
    let signs = |name| {
        let values = (0..4096).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        Tensor { name, dtype: "BF16", shape: vec![1, 4096], values }
    };
    let half = PART_ROWS / 2;
    [(signs("a"), 5 * half), (gaussian("poor", 2), 4 * half), (signs("z"), 3 * half)]
}

/// A run that is under way; it ends with the test.
pub(crate) struct Running(pub Child);

impl Running {
    /// Waits until something is so, or the run has ended.
    pub(crate) fn until(&mut self, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !is_so() && self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the run does not get there");
            std::thread::yield_now();
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        // That it has ended already is seen by its status.
        let command = format!("kill -{name} {} 2> /dev/null", self.0.id());
        Command::new("sh").args(["-c", &command]).status().unwrap();
    }

    pub(crate) fn kill(mut self) -> Outcome {
        self.0.kill().unwrap();
        self.end()
    }

    pub(crate) fn end(mut self) -> Outcome {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Outcome { status: self.0.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a run left: the file of each part that was finished, as it was written last.
pub(crate) struct Left {
    pub is_begun: bool,
    pub parts: BTreeMap<String, FileId>,
    pub contents: Files,
}

/// What a file has no longer once it was written again: its inode and the time of its last change.
pub(crate) type FileId = (u64, i64, i64);

impl Left {
    /// # Panics
    /// If a part was written twice in the same way.
    #[track_caller]
    pub(crate) fn of(job: &Job) -> Self {
        let journal = job.journal();
        let mut left = Self { is_begun: !journal.is_empty(), parts: BTreeMap::new(), contents: Files::new() };
        let mut seen = HashSet::new();
        let mut latest = BTreeMap::new();
        for record in journal.iter().skip(1) {
            assert!(seen.insert((record["part"].to_string(), record["plan"].to_string())), "done twice: {record}");
            let file = &record["file"];
            latest.insert(file["path"].as_str().unwrap().to_string(), file["bytes"].as_u64().unwrap());
        }
        for (path, bytes) in latest {
            let contents = fs::read(job.partial().join(&path)).unwrap();
            // Another length is that of a part that was written anew, its record not.
            if contents.len() as u64 == bytes {
                left.parts.insert(path.clone(), file_id(&job.partial().join(&path)));
                left.contents.insert(path, contents);
            }
        }
        left
    }

    /// Leaves only the parts that are as they shall be in the end.
    pub(crate) fn only(mut self, expected: &Files) -> Self {
        self.parts.retain(|path, _| self.contents[path] == expected[path]);
        self
    }

    /// Asserts that no part was written again since.
    #[track_caller]
    pub(crate) fn is_untouched_in(&self, directory: &Path) {
        for (path, id) in &self.parts {
            assert_eq!(file_id(&directory.join(path)), *id, "{path} was written again");
        }
    }
}

pub(crate) fn file_id(path: &Path) -> FileId {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

/// Numbers that follow from a seed (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % u64::from(limit)) as u32
    }
}
