//! Serves a DataFusion session over Arrow Flight and Flight SQL.
//!
//! [`Server::bind`] takes any [`SessionContext`](datafusion::prelude::SessionContext): its catalogs and schemas are there for
//! everyone, to be read; each client has a session with a schema `public` of its own. What is not a query comes in as an
//! [`Action`].

#![forbid(unsafe_code)]

mod action;
mod actions;
mod auth;
mod connections;
mod encoding;
mod error;
mod exchange;
mod flights;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gate;
mod ingest;
mod input;
mod interrupt;
mod limits;
mod lock;
pub mod logs;
mod metadata;
mod metrics;
mod options;
mod parameters;
mod placeholders;
mod poll;
mod prepared;
mod put;
mod queries;
mod results;
mod server;
mod service;
mod session;
mod spool;
mod statements;
mod status;
mod stream;
mod tables;
mod tls;
mod wire;

pub use action::{Action, ActionCall, ActionStream};
pub use auth::{Credentials, hash_password, new_token};
pub use error::ServeError;
pub use interrupt::{Interrupt, Interruptible};
pub use limits::Limits;
pub use server::{Reloader, Server, ServerConfig};
pub use status::Classify;
pub use tls::TlsFiles;
pub use tonic::Code;
