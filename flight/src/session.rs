//! Sessions: what one client sees and changes, apart from all others.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider,
    TableProvider,
};
use datafusion::common::{Result, plan_err};
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::TableType;
use datafusion::prelude::SessionContext;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use crate::auth::{Caller, SessionKey};
use crate::limits::Limits;
use crate::lock::locked;
use crate::parameters::Statements;
use crate::queries::Queries;
use crate::tables::{OWN_SCHEMA, SessionSchema, UserTables, blocking};

/// One session.
pub(crate) struct Session {
    pub user: Arc<str>,
    pub ctx: SessionContext,
    pub tables: Arc<SessionSchema>,
    pub statements: Statements,
    pub queries: Queries,
    /// Fires when the session ends, or the server.
    pub cancelled: CancellationToken,
    used: Mutex<Instant>,
}

impl Session {
    fn new(base: &SessionContext, user: Arc<str>, stored: Arc<UserTables>, limit: usize) -> Result<Self> {
        let state = base.state();
        let name = state.config_options().catalog.default_catalog.clone();
        let tables = Arc::new(SessionSchema::new(stored));
        let catalogs = MemoryCatalogProviderList::new();
        for other in state.catalog_list().catalog_names() {
            if let (true, Some(catalog)) = (other != name, state.catalog_list().catalog(&other)) {
                catalogs.register_catalog(other, Arc::new(ReadOnlyCatalog(catalog)));
            }
        }
        let Some(shared) = state.catalog_list().catalog(&name) else {
            return plan_err!("the served session has no catalog '{name}'");
        };
        let own: Arc<dyn SchemaProvider> = Arc::clone(&tables) as _;
        catalogs.register_catalog(name, Arc::new(SessionCatalog::new(shared, own)?));
        let state = SessionStateBuilder::new_from_existing(state)
            .with_session_id(Uuid::new_v4().to_string())
            .with_catalog_list(Arc::new(catalogs))
            .build();
        Ok(Self {
            user,
            ctx: SessionContext::new_with_state(state),
            tables,
            statements: Statements::new(limit),
            queries: Queries::new(limit),
            cancelled: CancellationToken::new(),
            used: Mutex::new(Instant::now()),
        })
    }

    /// A context of the same session in which `public` has one table more, for one query.
    pub(crate) fn with_table(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<SessionContext> {
        let state = self.ctx.state();
        let catalog_name = state.config_options().catalog.default_catalog.clone();
        let catalogs = MemoryCatalogProviderList::new();
        for other in state.catalog_list().catalog_names() {
            let Some(catalog) = state.catalog_list().catalog(&other) else { continue };
            if other == catalog_name {
                let own =
                    Overlay { name: name.to_string(), table: Arc::clone(&table), below: Arc::clone(&self.tables) as _ };
                catalogs.register_catalog(other, Arc::new(SessionCatalog::new(catalog, Arc::new(own))?));
            } else {
                catalogs.register_catalog(other, catalog);
            }
        }
        let state = SessionStateBuilder::new_from_existing(state).with_catalog_list(Arc::new(catalogs)).build();
        Ok(SessionContext::new_with_state(state))
    }

    /// Stops all that runs in it.
    pub(crate) fn cancel(&self) {
        self.cancelled.cancel();
        self.queries.cancel_all();
    }

    fn touch(&self) {
        *locked(&self.used) = Instant::now();
    }

    fn idle(&self) -> Duration {
        locked(&self.used).elapsed()
    }
}

/// The name of a user.
type User = Arc<str>;

/// All sessions of a server.
pub(crate) struct Sessions {
    base: SessionContext,
    ingest_directory: Option<PathBuf>,
    limits: Limits,
    open: Mutex<HashMap<(User, SessionKey), Arc<Session>>>,
    stored: Mutex<HashMap<User, Arc<OnceCell<Arc<UserTables>>>>>,
}

impl Sessions {
    pub(crate) fn new(base: SessionContext, ingest_directory: Option<PathBuf>, limits: Limits) -> Self {
        Self { base, ingest_directory, limits, open: Mutex::default(), stored: Mutex::default() }
    }

    /// The session everybody's are made from.
    pub(crate) fn base(&self) -> &SessionContext {
        &self.base
    }

    /// The session of a caller, made if there is none.
    pub(crate) async fn of(&self, caller: &Caller) -> Result<Arc<Session>, Status> {
        if let Some(session) = self.existing(caller) {
            return Ok(session);
        }
        let failed = |error| {
            tracing::error!(%error, user = %caller.user, "a session cannot be made");
            Status::internal("a session cannot be made, see the server's log")
        };
        let stored = self.stored(&caller.user).await.map_err(failed)?;
        let mut open = locked(&self.open);
        if open.len() >= self.limits.sessions {
            return Err(Status::resource_exhausted(format!(
                "sessions: {} are open; close one (CloseSession) or try again later",
                open.len()
            )));
        }
        let key = (Arc::clone(&caller.user), Arc::clone(&caller.session));
        if let Some(session) = open.get(&key) {
            return Ok(Arc::clone(session));
        }
        let session =
            Session::new(&self.base, Arc::clone(&caller.user), stored, self.limits.statements).map_err(failed)?;
        let session = Arc::new(session);
        open.insert(key, Arc::clone(&session));
        Ok(session)
    }

    /// The session of a caller, if it was used before.
    pub(crate) fn existing(&self, caller: &Caller) -> Option<Arc<Session>> {
        let key = (Arc::clone(&caller.user), Arc::clone(&caller.session));
        let session = locked(&self.open).get(&key).cloned()?;
        session.touch();
        Some(session)
    }

    /// The tables that a user stored. The first request of a user looks for them; other requests of
    /// that user wait.
    async fn stored(&self, user: &User) -> Result<Arc<UserTables>> {
        let known = Arc::clone(locked(&self.stored).entry(Arc::clone(user)).or_default());
        let tables = known.get_or_try_init(|| {
            let (base, directory, user) = (self.base.clone(), self.ingest_directory.clone(), Arc::clone(user));
            blocking(move || UserTables::open(&base, directory.as_deref(), &user).map(Arc::new))
        });
        tables.await.cloned()
    }

    /// Ends a session: its queries are cancelled, its tables and statements are gone. False if there is none.
    pub(crate) fn close(&self, caller: &Caller) -> bool {
        let key = (Arc::clone(&caller.user), Arc::clone(&caller.session));
        let session = locked(&self.open).remove(&key);
        if let Some(session) = &session {
            session.cancel();
        }
        session.is_some()
    }

    /// Ends what was not used for longer than its lifetime.
    pub(crate) fn sweep(&self) {
        let mut expired = Vec::new();
        locked(&self.open).retain(|_, session| {
            session.queries.sweep(self.limits.result_lifetime);
            let keep = session.idle() < self.limits.session_lifetime || session.queries.any_runs();
            if !keep {
                expired.push(Arc::clone(session));
            }
            keep
        });
        // Dropped outside the lock: tables give their memory back.
        drop(expired);
    }

    /// All sessions there are.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        locked(&self.open).values().cloned().collect()
    }

    /// The sessions of a user: results are shared among them, so that partitions can be read by other connections.
    pub(crate) fn of_user(&self, user: &str) -> Vec<Arc<Session>> {
        locked(&self.open).values().filter(|session| &*session.user == user).cloned().collect()
    }
}

/// The catalog of a session: the schemas that all share, which it cannot change, and its own.
#[derive(Debug)]
struct SessionCatalog {
    shared: Arc<dyn CatalogProvider>,
    own: MemoryCatalogProvider,
}

impl SessionCatalog {
    fn new(shared: Arc<dyn CatalogProvider>, public: Arc<dyn SchemaProvider>) -> Result<Self> {
        let own = MemoryCatalogProvider::new();
        own.register_schema(OWN_SCHEMA, public)?;
        Ok(Self { shared, own })
    }
}

impl CatalogProvider for SessionCatalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names = self.shared.schema_names();
        names.extend(self.own.schema_names());
        names.sort();
        names.dedup();
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.own.schema(name).or_else(|| Some(Arc::new(ReadOnlySchema(self.shared.schema(name)?)) as _))
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> Result<Option<Arc<dyn SchemaProvider>>> {
        if self.shared.schema(name).is_some() {
            return plan_err!("the schema '{name}' is served to everyone, choose another name");
        }
        self.own.register_schema(name, schema)
    }

    fn deregister_schema(&self, name: &str, cascade: bool) -> Result<Option<Arc<dyn SchemaProvider>>> {
        if name == OWN_SCHEMA || self.own.schema(name).is_none() && self.shared.schema(name).is_some() {
            return plan_err!("the schema '{name}' cannot be dropped");
        }
        self.own.deregister_schema(name, cascade)
    }
}

/// A catalog that a session cannot change.
#[derive(Debug)]
struct ReadOnlyCatalog(Arc<dyn CatalogProvider>);

impl CatalogProvider for ReadOnlyCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.0.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        Some(Arc::new(ReadOnlySchema(self.0.schema(name)?)))
    }
}

/// A schema that a session cannot change.
#[derive(Debug)]
struct ReadOnlySchema(Arc<dyn SchemaProvider>);

#[async_trait]
impl SchemaProvider for ReadOnlySchema {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        self.0.table(name).await
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        self.0.table_type(name).await
    }

    fn register_table(&self, name: String, _: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        plan_err!(
            "'{name}': this schema is served to everyone and cannot be changed; tables of your own go to '{OWN_SCHEMA}'"
        )
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        plan_err!("'{name}': this schema is served to everyone and cannot be changed")
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.table_exist(name)
    }
}

/// A schema with one table more.
#[derive(Debug)]
struct Overlay {
    name: String,
    table: Arc<dyn TableProvider>,
    below: Arc<dyn SchemaProvider>,
}

#[async_trait]
impl SchemaProvider for Overlay {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.below.table_names();
        names.push(self.name.clone());
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if name == self.name { Ok(Some(Arc::clone(&self.table))) } else { self.below.table(name).await }
    }

    fn table_exist(&self, name: &str) -> bool {
        name == self.name || self.below.table_exist(name)
    }
}
