//! What an unfinished run has done so far: which parts are complete, and what was measured in them. A later run goes on
//! from there.
//!
//! A file of JSON lines beside the parts. The first says what the run is of; each other one that a part was written, after
//! its file has its name. A run that goes on checks the hash of each part, so one that did not reach the disk is written again. A line that was cut off by the end of the run counts for nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use arrow_quant_formats::manifest::FileEntry;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::task::PartRecord;
use crate::{QuantError, Result, disk};

/// What a run is of. Parts are used again only by a run of the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunIdentity {
    /// The program that writes the parts.
    pub program: String,
    /// The name of the target.
    pub target: String,
    /// The source's fingerprint.
    pub source: String,
    /// The configuration, as recorded in the manifest.
    pub settings: Map<String, Value>,
    /// A hash of what a calibration became; empty without one.
    pub calibration: String,
    /// A hash of what each tensor shall become at first.
    pub plan: String,
}

impl RunIdentity {
    /// What differs from another run, in words.
    fn difference(&self, other: &Self) -> String {
        if self.program != other.program {
            return format!("it was begun by {}", other.program);
        }
        if self.target != other.target {
            return format!("it was begun as {}", other.target);
        }
        if self.source != other.source {
            return "the model has changed since".to_string();
        }
        let names = self.settings.keys().chain(other.settings.keys());
        let mut changed: Vec<_> = names.filter(|name| self.settings.get(*name) != other.settings.get(*name)).collect();
        changed.sort_unstable();
        changed.dedup();
        // The width is that of the type.
        if changed.iter().any(|name| *name == "bit_width") {
            changed.retain(|name| *name != "type");
        }
        match changed.as_slice() {
            [] if self.calibration != other.calibration => "it was begun with another calibration".to_string(),
            [] => "its plan was another".to_string(),
            [field] => format!("it was begun with another {field}"),
            fields => {
                format!("it was begun with other {}", fields.iter().map(|f| f.as_str()).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// The journal of a run, locked for as long as the run lasts.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// By part and key, the latest of each.
    records: HashMap<(usize, String), PartRecord>,
    /// The key of what lies on disk, by part.
    on_disk: HashMap<usize, String>,
}

/// A journal that was found.
pub(crate) enum Found {
    /// Its run has ended. It is locked from now on.
    Left(LeftJournal),
    /// Its run is still going on.
    Running,
}

/// The journal of a run that ended.
#[derive(Debug)]
pub(crate) struct LeftJournal {
    path: PathBuf,
    file: File,
}

impl LeftJournal {
    /// Goes on with the journal if its run was the same. `is_intact` tells whether a part's file is what was written.
    /// If it was another: the journal again, and why.
    pub(super) fn resume(
        mut self,
        identity: &RunIdentity,
        is_intact: impl Fn(&FileEntry) -> bool,
    ) -> Result<Result<Journal, (Self, String)>> {
        let io = |e| QuantError::io(&self.path, e);
        let mut text = String::new();
        self.file.read_to_string(&mut text).map_err(io)?;
        // What follows the last line end was being written when the run ended.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..complete].lines();
        let Some(found) = lines.next().and_then(|line| serde_json::from_str::<RunIdentity>(line).ok()) else {
            return Ok(Err((self, "it did not get far".to_string())));
        };
        if found != *identity {
            let difference = identity.difference(&found);
            return Ok(Err((self, difference)));
        }
        let mut records = HashMap::new();
        let mut latest: HashMap<usize, PartRecord> = HashMap::new();
        for line in lines {
            let Ok(record) = serde_json::from_str::<PartRecord>(line) else {
                return Ok(Err((self, "its journal is damaged".to_string())));
            };
            latest.insert(record.part, record.clone());
            records.insert((record.part, record.key.clone()), record);
        }
        latest.retain(|_, record| is_intact(&record.file));
        // There are file systems on which nothing can be cut.
        if complete < text.len() {
            self.file.set_len(complete as u64).map_err(io)?;
        }
        self.file.seek(SeekFrom::End(0)).map_err(io)?;
        let on_disk = latest.into_values().map(|record| (record.part, record.key)).collect();
        Ok(Ok(Journal::new(&self.path, self.file, records, on_disk)))
    }

    /// Begins the journal of another run in the same file.
    pub(super) fn restart(mut self, identity: &RunIdentity) -> Result<Journal> {
        let io = |e| QuantError::io(&self.path, e);
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(io)?;
        write_line(&mut self.file, &self.path, identity).map_err(io)?;
        Ok(Journal::new(&self.path, self.file, HashMap::new(), HashMap::new()))
    }
}

impl Journal {
    /// Begins the journal of a run in a new file.
    pub(super) fn create(path: &Path, identity: &RunIdentity) -> Result<Self> {
        let io = |e| QuantError::io(path, e);
        let mut file = File::create_new(path).map_err(io)?;
        if !disk::lock(&file, path) {
            return Err(io(ErrorKind::WouldBlock.into()));
        }
        write_line(&mut file, path, identity).map_err(io)?;
        Ok(Self::new(path, file, HashMap::new(), HashMap::new()))
    }

    /// The journal that a run left, or is at work on. `None` if there is none.
    pub(super) fn find(path: &Path) -> Result<Option<Found>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(QuantError::io(path, e)),
        };
        let is_locked = disk::lock(&file, path);
        Ok(Some(if is_locked { Found::Left(LeftJournal { path: path.to_path_buf(), file }) } else { Found::Running }))
    }

    fn new(
        path: &Path,
        file: File,
        records: HashMap<(usize, String), PartRecord>,
        on_disk: HashMap<usize, String>,
    ) -> Self {
        Self { path: path.to_path_buf(), inner: Mutex::new(Inner { file, records, on_disk }) }
    }

    /// What was measured when a task of this key wrote a part, in this run or an earlier one.
    pub(super) fn record(&self, part: usize, key: &str) -> Option<PartRecord> {
        self.lock().records.get(&(part, key.to_string())).cloned()
    }

    /// Whether a part lies on disk as a task of this key writes it.
    pub(super) fn is_on_disk(&self, part: usize, key: &str) -> bool {
        self.lock().on_disk.get(&part).is_some_and(|found| found == key)
    }

    /// Parts on disk.
    pub(super) fn parts(&self) -> usize {
        self.lock().on_disk.len()
    }

    /// Says that a part is about to be written again, so that what lies on disk no longer counts.
    pub(super) fn forget(&self, part: usize) {
        self.lock().on_disk.remove(&part);
    }

    /// Adds a part that is durable.
    pub(super) fn append(&self, record: &PartRecord) -> Result<()> {
        let mut inner = self.lock();
        write_line(&mut inner.file, &self.path, record).map_err(|e| QuantError::io(&self.path, e))?;
        inner.on_disk.insert(record.part, record.key.clone());
        inner.records.insert((record.part, record.key.clone()), record.clone());
        Ok(())
    }

    /// A thread that panicked while it held the lock left whole lines: `write_line` writes one at once.
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Writes a value as a line, and waits until it is durable. If it cannot be written, nothing of it stays.
fn write_line(file: &mut File, path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let start = file.stream_position()?;
    file.write_all(&line).and_then(|()| disk::sync_file(file, path)).inspect_err(|_| {
        // Of a second failure the first one tells enough; a line that is cut off is understood as such.
        let _ = file.set_len(start).and_then(|()| file.seek(SeekFrom::Start(start)));
    })
}

#[cfg(test)]
mod tests {
    use arrow_quant_kernels::PairSums;

    use super::*;
    use crate::targets::WrittenTensor;

    fn identity() -> RunIdentity {
        let settings = Map::from_iter([("bit_width".to_string(), Value::from(4))]);
        RunIdentity {
            program: "p 1".into(),
            target: "t".into(),
            source: "abc".into(),
            settings,
            calibration: String::new(),
            plan: "0".into(),
        }
    }

    fn record(part: usize, key: &str, sum: f64) -> PartRecord {
        let errors = Some(PairSums { n: 7, sum_aa: sum, ..PairSums::default() });
        PartRecord {
            part,
            key: key.to_string(),
            file: FileEntry { path: format!("part-{part}"), bytes: 1, sha256: String::new() },
            tensors: vec![WrittenTensor { component: String::new(), tensor: "w".into(), bytes: 1, errors }],
        }
    }

    #[test]
    fn what_was_finished_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let awkward = 0.1 + 0.2;
        {
            let journal = Journal::create(&path, &identity()).unwrap();
            journal.append(&record(0, "a", awkward)).unwrap();
            journal.append(&record(1, "a", 1e-310)).unwrap();
            journal.append(&record(1, "b", 3.0)).unwrap();
            assert!(matches!(Journal::find(&path).unwrap(), Some(Found::Running)));
        }
        // The run ended while it wrote a line.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"part\":2,").unwrap();
        drop(file);
        for _ in 0..2 {
            let Some(Found::Left(left)) = Journal::find(&path).unwrap() else { panic!("no journal") };
            let journal = left.resume(&identity(), |file| file.path != "part-0").unwrap().unwrap();
            let sum = |part, key| journal.record(part, key).map(|r| r.tensors[0].errors.unwrap().sum_aa);
            assert_eq!(
                (sum(0, "a"), sum(1, "a"), sum(1, "b"), sum(2, "a")),
                (Some(awkward), Some(1e-310), Some(3.0), None)
            );
            assert!(!journal.is_on_disk(0, "a"), "damaged since");
            assert!(!journal.is_on_disk(1, "a") && journal.is_on_disk(1, "b"), "written again since");
        }
    }

    #[test]
    fn another_run_is_told_from_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let reason = |change: fn(&mut RunIdentity)| {
            let mut other = identity();
            change(&mut other);
            let Some(Found::Left(left)) = Journal::find(&path).unwrap() else { panic!("no journal") };
            left.resume(&other, |_| true).unwrap().unwrap_err().1
        };
        assert!(Journal::find(&path).unwrap().is_none());
        drop(Journal::create(&path, &identity()).unwrap());
        assert_eq!(reason(|r| r.program = "p 2".into()), "it was begun by p 1");
        assert_eq!(reason(|r| r.target = "u".into()), "it was begun as t");
        assert_eq!(reason(|r| r.source = "x".into()), "the model has changed since");
        assert_eq!(reason(|r| r.plan = "x".into()), "its plan was another");
        assert_eq!(
            reason(|r| (r.calibration, r.plan) = ("x".into(), "x".into())),
            "it was begun with another calibration"
        );
        assert_eq!(
            reason(|r| drop(r.settings.insert("bit_width".into(), 2.into()))),
            "it was begun with another bit_width"
        );
        let Some(Found::Left(left)) = Journal::find(&path).unwrap() else { panic!("no journal") };
        let other = RunIdentity { plan: "x".into(), ..identity() };
        drop(left.restart(&other).unwrap());
        assert_eq!(reason(|_| ()), "its plan was another");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(reason(|_| ()), "it did not get far");
    }
}
