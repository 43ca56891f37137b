//! Connections whose client has not yet said a word: they are not kept for long, and the end of the server does not wait for them. One
//! that has agreed on encryption has said enough here.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// The bytes that a client begins with, whatever it wants: the preface of HTTP/2 (RFC 9113, section 3.4). A greeting of TLS is longer.
const GREETING: usize = 24;

/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that ends with an error unless its client greets in time.
pub(crate) struct Greeted<S> {
    stream: S,
    received: usize,
    /// Until the client has greeted: what makes an end to waiting.
    enough: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Greeted<S> {
    /// `stopping` ends the wait too.
    pub fn new(stream: S, stopping: CancellationToken) -> Self {
        let enough = async move {
            let _ = tokio::time::timeout(PATIENCE, stopping.cancelled()).await;
        };
        Self { stream, received: 0, enough: Some(Box::pin(enough)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.enough.is_some() {
            self.received += buffer.filled().len() - before;
            if self.received >= GREETING {
                self.enough = None;
            }
        }
        match (read, &mut self.enough) {
            (Poll::Pending, Some(enough)) => {
                enough.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "no greeting")))
            }
            (read, _) => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
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

impl<S: Connected> Connected for Greeted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
