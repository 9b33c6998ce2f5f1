//! What the operating system may interrupt the process with.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// A flag that the first Ctrl-C (or SIGTERM) raises; the second ends the process at once.
pub(crate) fn stop_on_ctrl_c() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&STOP)
}

/// Lets a write beyond the file-size limit fail with an error that names the file, instead of ending the process.
pub(crate) fn refuse_to_die_of_large_files() {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    // SAFETY: ignoring a signal installs no handler, so no code of ours runs in a signal's context.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
