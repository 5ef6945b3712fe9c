//! The side thread: admin API, metrics, health and the operator's page.
//!
//! Nothing here is on the data path. It asks shards for copies of their numbers and hands them
//! requests (see [`ports`]); it never reaches into them, and none of them waits for it. It speaks
//! plain HTTP/1.1 on the control listener, which is not for the public.
//!
//! In the order of a request: [`api`] the routes, `admin` what needs the token, `health`,
//! `metrics`, `page`; `reply` the shape of every error.

mod admin;
mod dead;
mod health;
mod inbox;
mod metrics;
mod page;
pub mod ports;
mod presence;
mod reply;
mod snapshot;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use tokio::sync::oneshot;

use crate::config::Secret;
use crate::exit::{Exit, StartError};
use ports::Cluster;

/// Largest request body, bytes: a full message body escaped in JSON, with its metadata.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a request waits for a shard before 504.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long open requests may go on when the thread is told to stop.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// What the handlers share.
#[derive(Clone)]
struct Context {
    cluster: Arc<dyn Cluster>,
    token: Arc<Secret>,
    started: Instant,
    answer_wait: Duration,
}

/// The running control thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Takes the control port.
///
/// # Errors
/// [`Exit::Port`] when it is taken or may not be used.
pub fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let port =
        |err: io::Error| StartError::new(Exit::Port, format!("the control address {address}: {}", in_words(&err)));
    let listener = TcpListener::bind(address).map_err(port)?;
    listener.set_nonblocking(true).map_err(port)?;
    Ok(listener)
}

/// Why an address cannot be used, and what to do.
pub fn in_words(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::AddrInUse => "the port is taken by another process; choose another one, or 0 for any".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the right to bind them; choose a higher one".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address".to_owned(),
        _ => err.to_string(),
    }
}

/// Starts the control thread on a listener from [`bind`].
///
/// # Errors
/// The thread or its reactor could not be made.
pub fn spawn(listener: TcpListener, token: Secret, cluster: Arc<dyn Cluster>) -> Result<Control, StartError> {
    let failed =
        |err: io::Error| StartError::new(Exit::Environment, format!("the control thread did not start: {err}"));
    let address = listener.local_addr().map_err(failed)?;
    let context = Context { cluster, token: Arc::new(token), started: Instant::now(), answer_wait: ANSWER_WAIT };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("antiphon-control".to_owned())
        .spawn(move || {
            if let Err(err) = runtime.block_on(serve(listener, api(context), stopped)) {
                tracing::error!(%err, "the control listener failed");
            }
        })
        .map_err(failed)?;
    Ok(Control { address, stop: Some(stop), thread: Some(thread) })
}

impl Control {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, app: Router, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (last_call, called) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = called.await;
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        _ = stopped => drop(last_call),
    }
    // Idle keep-alive connections would hold the stop up for ever.
    tokio::time::timeout(STOP_WAIT, server).await.unwrap_or(Ok(()))
}

/// Every route.
fn api(context: Context) -> Router {
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .merge(page::routes())
        .nest(admin::PREFIX, admin::routes(&context))
        .fallback(reply::no_such_path)
        .method_not_allowed_fallback(reply::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(context)
}

#[cfg(test)]
mod tests;
