//! Connections as they come in: accepted, encrypted if the server has a certificate, and greeted. A client that does not agree on encryption
//! or then says nothing is not kept for long, and the end of the server does not wait for it.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;

use crate::tls::Encryption;

/// The bytes that a client begins with, whatever it wants: the preface of HTTP/2 (RFC 9113, section 3.4).
const GREETING: usize = 24;

/// How long a client may take to agree on encryption and to greet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the server waits before it accepts again, once it could not: usually since it has no file handles left.
const BREATH: Duration = Duration::from_millis(50);

/// How often it says so.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(1);

/// The connections of a listener, in the order in which clients have agreed on encryption. `stopping` ends the wait for those that have said
/// nothing yet.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<Arc<Encryption>>,
    stopping: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let accepting = Accepting { listener, warned: None };
    let accepted = stream::unfold(accepting, async |mut accepting| Some((accepting.next().await, accepting)));
    let begun = accepted.map(move |stream| {
        let connection = Connection::begin(stream, tls.as_ref().map(|tls| tls.acceptor()), stopping.clone());
        // Each on its own, so that the arithmetic of many is shared out to the threads.
        AbortOnDropHandle::new(tokio::spawn(connection))
    });
    begun.buffer_unordered(usize::MAX).map(|begun| begun.map_err(io::Error::other).flatten())
}

struct Accepting {
    listener: TcpListener,
    warned: Option<Instant>,
}

impl Accepting {
    async fn next(&mut self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                // The client's doing, before it was accepted.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if self.warned.is_none_or(|warned| warned.elapsed() >= BETWEEN_WARNINGS) {
                        tracing::warn!(%error, "no connection can be accepted");
                        self.warned = Some(Instant::now());
                    }
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

/// What makes an end to waiting.
type Enough = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that ends with an error unless its client greets in time.
pub(crate) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    client: Option<SocketAddr>,
    received: usize,
    greeting: Greeting,
}

enum Greeting {
    Awaited(Enough),
    Come,
    TooLate,
}

/// Who is on the other side, as far as the transport knows.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// The certificate the client has shown, as DER.
    pub certificate: Option<Arc<[u8]>>,
}

impl Connection {
    async fn begin(stream: TcpStream, tls: Option<TlsAcceptor>, stopping: CancellationToken) -> io::Result<Self> {
        let client = stream.peer_addr().ok();
        // Small messages wait for nothing; one that is slower for it is still right.
        let _ = stream.set_nodelay(true);
        let mut enough: Enough = Box::pin(async move {
            let _ = tokio::time::timeout(PATIENCE, stopping.cancelled()).await;
        });
        let stream = match tls {
            None => Either::Left(stream),
            Some(tls) => tokio::select! {
                encrypted = tls.accept(stream) => match encrypted {
                    Ok(encrypted) => Either::Right(Box::new(encrypted)),
                    Err(error) => {
                        tracing::debug!(?client, %error, "no agreement on encryption");
                        return Err(error);
                    }
                },
                () = &mut enough => return Err(too_late()),
            },
        };
        Ok(Self { stream, client, received: 0, greeting: Greeting::Awaited(enough) })
    }
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the client has not greeted")
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Greeting::TooLate = self.greeting {
            return Poll::Ready(Err(too_late()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Greeting::Awaited(enough) = &mut self.greeting {
            if read.is_pending() && enough.as_mut().poll(cx).is_ready() {
                self.greeting = Greeting::TooLate;
                return Poll::Ready(Err(too_late()));
            }
            self.received += buffer.filled().len() - before;
            if self.received >= GREETING {
                self.greeting = Greeting::Come;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificate = match &self.stream {
            Either::Left(_) => None,
            Either::Right(encrypted) => {
                let certificates = encrypted.get_ref().1.peer_certificates();
                certificates.and_then(|chain| chain.first()).map(|certificate| Arc::from(certificate.as_ref()))
            }
        };
        Peer { address: self.client, certificate }
    }
}
