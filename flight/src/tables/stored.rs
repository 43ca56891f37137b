//! Tables that users stored: `directory/<user>/<table>/part-<generation>-<number>-<uuid>.parquet`.
//!
//! Each ingest gives one file, moved into place when it is whole. Appending gives it the generation of the table's other files,
//! replacing the next one; files of the highest generation are the table. So one rename decides, and whatever moment the
//! server stops at, it finds the table before or after.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, plan_datafusion_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use object_store::ObjectMeta;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use uuid::Uuid;

use super::files::{FILE_NAME_BYTES, PartFile, decoded, encoded, part_files, sync};
use super::incoming::{Columns, IngestError, Mode};
use super::staged::{Staged, blocking, read_schema};
use super::{Destination, insertion};
use crate::ServeError;
use crate::lock::locked;

/// Where files are while they are written, and after their table was dropped. No user has this name.
const STAGING: &str = ".staging";

/// Removes what ingests and drops of an earlier run left.
///
/// # Errors
/// If the directory cannot be made or written.
pub(crate) fn clear_staging(directory: &Path) -> Result<(), ServeError> {
    let staging = directory.join(STAGING);
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ServeError::io(staging, error)),
        _ => {}
    }
    fs::create_dir_all(&staging).map_err(|error| ServeError::io(staging, error))
}

/// The tables that a user stored, for all sessions of that user.
#[derive(Debug)]
pub(crate) struct UserTables {
    /// None if nothing is stored.
    place: Option<Place>,
    tables: Mutex<BTreeMap<String, Arc<Stored>>>,
    /// Held while files are moved into and out of place.
    commits: Mutex<()>,
}

#[derive(Debug)]
struct Place {
    /// Of the user.
    directory: PathBuf,
    staging: PathBuf,
    /// The store of the directory, for this user's queries. Its name is a secret, so that no other location leads to it.
    store: ObjectStoreUrl,
    environment: Arc<RuntimeEnv>,
    /// Whether the directory and the store are there.
    begun: AtomicBool,
}

impl UserTables {
    /// The tables there are. One that cannot be read is left out, with a warning in the log.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn open(base: &SessionContext, directory: Option<&Path>, user: &str) -> Result<Self> {
        let (mut place, mut tables) = (None, BTreeMap::new());
        if let Some(root) = directory {
            let store = ObjectStoreUrl::parse(format!("ingest://{}", Uuid::new_v4().simple()))?;
            let found = Place {
                directory: root.join(encoded(user)),
                staging: root.join(STAGING),
                store,
                environment: base.runtime_env(),
                begun: AtomicBool::new(false),
            };
            tables = found.tables()?;
            place = Some(found);
        }
        Ok(Self { place, tables: Mutex::new(tables), commits: Mutex::default() })
    }

    /// Whether tables are stored at all.
    pub(crate) fn stores(&self) -> bool {
        self.place.is_some()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        locked(&self.tables).keys().cloned().collect()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        locked(&self.tables).contains_key(name)
    }

    pub(crate) fn table(self: &Arc<Self>, name: &str) -> Option<Arc<dyn TableProvider>> {
        let schema = Arc::clone(&self.stored(name)?.schema);
        let store = self.place.as_ref()?.store.clone();
        Some(Arc::new(StoredTable { tables: Arc::clone(self), name: name.to_string(), store, schema }))
    }

    fn stored(&self, name: &str) -> Option<Arc<Stored>> {
        locked(&self.tables).get(name).cloned()
    }

    fn place(&self) -> Result<&Place> {
        self.place.as_ref().ok_or_else(|| plan_datafusion_err!("this server stores no tables"))
    }

    /// Writes rows to a table, and gives their number.
    ///
    /// # Errors
    /// See [`crate::ingest::ingest`]; nothing has changed then.
    pub(crate) async fn write(
        self: &Arc<Self>,
        name: &str,
        mode: Mode,
        input: SendableRecordBatchStream,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let place = self.place()?;
        if encoded(name).len() > FILE_NAME_BYTES {
            return Err(IngestError::Unsupported(format!("the name '{name}' is too long for a stored table")).into());
        }
        let current = self.stored(name);
        let appends = mode.appends(name, current.is_some())?;
        let known = current.filter(|_| appends).map(|stored| Arc::clone(&stored.schema));
        let columns = Columns::of(&input.schema(), known.as_ref())?;
        let mut staged = Staged::write(&place.staging, &columns, input, pool).await?;
        if let Some(schema) = known {
            staged.schema = schema;
        }
        let (tables, name, rows) = (Arc::clone(self), name.to_string(), staged.rows);
        blocking(move || tables.commit(&name, mode, staged)).await?;
        Ok(rows)
    }

    /// Moves a file into place.
    fn commit(&self, name: &str, mode: Mode, staged: Staged) -> Result<()> {
        let place = self.place()?;
        let _alone = locked(&self.commits);
        let current = self.stored(name);
        let appends = mode.appends(name, current.is_some())?;
        let directory = place.directory.join(encoded(name));
        fs::create_dir_all(&directory)?;
        place.begin()?;
        let (generation, mut parts) = match &current {
            Some(stored) if appends => {
                if stored.schema != staged.schema {
                    return Err(IngestError::changed(name).into());
                }
                (stored.generation, stored.parts.clone())
            }
            Some(stored) => (stored.generation.saturating_add(1), Vec::new()),
            // Files may be there that cannot be read.
            None => {
                let newest = part_files(&directory)?.into_iter().map(|file| file.generation).max();
                (newest.map_or(0, |newest| newest.saturating_add(1)), Vec::new())
            }
        };
        let number = parts.last().map_or(0, |part: &Arc<Part>| part.number + 1);
        let file = PartFile::new(generation, number, staged.bytes);
        let part = place.part(name, &file)?;
        let schema = Arc::clone(&staged.schema);
        staged.publish(&part.path)?;
        for directory in [&directory, &place.directory] {
            sync(directory)?;
        }
        parts.push(Arc::new(part));
        locked(&self.tables).insert(name.to_string(), Arc::new(Stored { schema, generation, parts }));
        if let Some(replaced) = current.filter(|_| !appends) {
            replaced.parts.iter().for_each(|part| part.obsolete.store(true, Ordering::Relaxed));
        }
        Ok(())
    }

    /// Removes a table and its files; gives what it was. Queries go on with the files they have opened.
    ///
    /// # Errors
    /// If its directory cannot be moved; the table is still there then.
    pub(crate) fn drop_table(self: &Arc<Self>, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let _alone = locked(&self.commits);
        let (Some(table), Some(place)) = (self.table(name), &self.place) else { return Ok(None) };
        fs::create_dir_all(&place.staging)?;
        let dropped = place.staging.join(Uuid::new_v4().to_string());
        fs::rename(place.directory.join(encoded(name)), &dropped)?;
        locked(&self.tables).remove(name);
        sync(&place.directory)?;
        if let Err(error) = fs::remove_dir_all(&dropped) {
            tracing::warn!(table = name, %error, "the files of a dropped table stay until the next start");
        }
        Ok(Some(table))
    }
}

impl Place {
    /// Makes the directory a store.
    fn begin(&self) -> Result<()> {
        if !self.begun.load(Ordering::Relaxed) {
            let files = LocalFileSystem::new_with_prefix(&self.directory)?;
            self.environment.register_object_store(self.store.as_ref(), Arc::new(files));
            self.begun.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The tables in the user's directory, which is made with the first of them.
    fn tables(&self) -> Result<BTreeMap<String, Arc<Stored>>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        self.begin()?;
        let mut tables = BTreeMap::new();
        for entry in entries {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).and_then(decoded) else { continue };
            match self.read(&name, &path) {
                Ok(Some(stored)) => {
                    tables.insert(name, Arc::new(stored));
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(table = name, %error, "a stored table cannot be read"),
            }
        }
        Ok(tables)
    }

    /// The table in a directory, if there is one. Files that it no longer has are removed.
    fn read(&self, name: &str, directory: &Path) -> Result<Option<Stored>> {
        let mut files = part_files(directory)?;
        files.sort_by_key(|file| (file.generation, file.number));
        let Some(generation) = files.last().map(|file| file.generation) else { return Ok(None) };
        let (files, replaced): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.generation == generation);
        let parts = files.iter().map(|file| self.part(name, file).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let Some(first) = parts.first() else { return Ok(None) };
        let schema = read_schema(&first.path)?;
        for file in replaced {
            fs::remove_file(directory.join(file.name))?;
        }
        Ok(Some(Stored { schema, generation, parts }))
    }

    fn part(&self, table: &str, file: &PartFile) -> Result<Part> {
        let table = encoded(table);
        let location = ObjectPath::parse(format!("{table}/{}", file.name))
            .map_err(|error| plan_datafusion_err!("the table cannot be stored: {error}"))?;
        Ok(Part {
            path: self.directory.join(table).join(&file.name),
            location,
            number: file.number,
            bytes: file.bytes,
            obsolete: AtomicBool::new(false),
        })
    }
}

/// A table at one moment.
#[derive(Debug)]
struct Stored {
    schema: SchemaRef,
    generation: u32,
    /// In the order they were appended; at least one.
    parts: Vec<Arc<Part>>,
}

/// A file of a table.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    location: ObjectPath,
    number: u32,
    bytes: u64,
    /// To be removed once no query needs it.
    obsolete: AtomicBool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a file of a replaced table stays until the next start");
        }
    }
}

/// A stored table as queries see it. A plan reads what there was when it was made: its files are kept as long as it is, unless
/// the table is dropped.
#[derive(Debug)]
struct StoredTable {
    tables: Arc<UserTables>,
    name: String,
    store: ObjectStoreUrl,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for StoredTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stored = self.tables.stored(&self.name).ok_or_else(|| IngestError::Missing(self.name.clone()))?;
        // A view may be older than the table.
        if stored.schema != self.schema {
            return Err(IngestError::changed(&self.name).into());
        }
        let environment = state.runtime_env();
        let reader = CachedParquetFileReaderFactory::new(
            environment.object_store(&self.store)?,
            environment.cache_manager.get_file_metadata_cache(),
        );
        let source = ParquetSource::new(&self.schema)
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(Arc::new(reader));
        let files = stored.parts.iter().map(|part| {
            let meta = ObjectMeta {
                location: part.location.clone(),
                last_modified: DateTime::UNIX_EPOCH,
                size: part.bytes,
                e_tag: None,
                version: None,
            };
            // The plan keeps the file.
            PartitionedFile::new_from_meta(meta).with_extension(Arc::clone(part))
        });
        let groups = FileGroup::new(files.collect()).split_files(state.config().target_partitions().max(1));
        let config = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        operation: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let destination = Destination::Stored(Arc::clone(&self.tables), self.name.clone());
        insertion(destination, self.schema(), input, operation)
    }
}
