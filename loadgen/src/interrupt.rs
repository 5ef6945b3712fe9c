//! Ctrl-C: the first one asks the run to end and tell what it has measured, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Begins to listen for it.
///
/// # Errors
/// The kernel's.
pub fn listen() -> Result<(), String> {
    let told = |error| format!("cannot listen for Ctrl-C: {error}");
    // In this order: what was asked for before this one ends the process.
    flag::register_conditional_default(SIGINT, ASKED.clone()).map_err(told)?;
    flag::register(SIGINT, ASKED.clone()).map_err(told)?;
    Ok(())
}

/// True once it came.
pub fn is_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
