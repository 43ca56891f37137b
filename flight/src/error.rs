//! Why a server cannot start or go on.

use std::net::SocketAddr;
use std::path::PathBuf;

use datafusion::error::DataFusionError;

/// What keeps a server from starting or serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A setting is not allowed; the message names it and what is allowed.
    #[error("{0}")]
    Configuration(String),
    /// Other machines can reach the address and could read what goes over it.
    #[error("{address} can be reached by other machines: set `tls`, listen on 127.0.0.1, or set `insecure`")]
    Unencrypted {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Other machines can reach the address and nothing tells who they are.
    #[error("{address} can be reached by other machines: set `credentials` or `tls.client_ca`, or set `insecure`")]
    Unauthenticated {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A file has not what it should have.
    #[error("{path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. It shows no secret.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The transport failed, or was given certificates it cannot use.
    #[error("{}", transport_message(.0))]
    Transport(#[from] tonic::transport::Error),
    /// The session cannot be served.
    #[error("{0}")]
    DataFusion(#[from] DataFusionError),
}

impl ServeError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

/// Tonic says "transport error" and keeps the reason in its source.
fn transport_message(error: &tonic::transport::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        message = format!("{message}: {reason}");
        source = reason.source();
    }
    message
}
