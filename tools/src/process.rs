//! What this process asks of the operating system and of its allocator.

use std::ffi::{c_int, c_long};
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

/// To be called first: freed memory is kept, one pool of threads works, and a write beyond the file-size limit is an error.
pub(crate) fn prepare() {
    keep_memory();
    work_on_one_pool();
    refuse_to_die_of_large_files();
}

/// Freed pages stay with the process, because the next step asks for as many: without it a training step of UPerNet on
/// ViT-S spends a tenth of its time on pages that the system clears anew. They come from one large range of addresses, so that
/// maps of different sizes find room in one another's (a step of UPerNet with 256 channels holds 0.1 GiB less than with ranges
/// of 1 GiB; with 16 GiB that of 768 channels takes a sixth longer). `MIMALLOC_PURGE_DELAY` and `MIMALLOC_ARENA_RESERVE` take precedence.
#[allow(unsafe_code)]
fn keep_memory() {
    /// `mi_option_purge_delay` in mimalloc.h of versions 2 and 3; −1 is never.
    const PURGE_DELAY: c_int = 15;
    /// `mi_option_arena_reserve`, addresses reserved at a time, in KiB.
    const ARENA_RESERVE: c_int = 23;
    unsafe extern "C" {
        fn mi_option_set_default(option: c_int, value: c_long);
    }
    // SAFETY: the function is mimalloc's, which is linked as the global allocator; it is not thread-safe, and no other
    // thread runs yet.
    unsafe {
        mi_option_set_default(PURGE_DELAY, -1);
        mi_option_set_default(ARENA_RESERVE, 4 << 20);
    }
}

/// candle runs elementwise operations on a pool of its own, whose threads spin at a barrier beside rayon's that do all other
/// work: without that pool a training step of UPerNet on ViT-S takes 18 % less CPU time. `CANDLE_NUM_THREADS` takes precedence.
#[allow(unsafe_code)]
fn work_on_one_pool() {
    const POOL_SIZE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL_SIZE).is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(POOL_SIZE, "1") }
    }
}

/// Seconds that all threads of this process have worked; `None` where the system does not say.
pub(crate) fn processor_seconds() -> Option<f64> {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes to `time` alone, which outlives it.
        let answer = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        (answer == 0).then_some(time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64)
    }
    #[cfg(not(unix))]
    None
}

/// Without it the signal would end the process before it could say which file it was.
fn refuse_to_die_of_large_files() {
    #[cfg(unix)]
    answer(libc::SIGXFSZ, libc::SIG_IGN);
}

/// Ends the process without a word once nobody reads its output any more, as in `… | head`. Not for what works on after its
/// reader has gone.
pub(crate) fn end_with_the_reader() {
    // Rust ignores the signal from the start, and `println!` panics instead.
    #[cfg(unix)]
    answer(libc::SIGPIPE, libc::SIG_DFL);
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn answer(signal: c_int, with: libc::sighandler_t) {
    // SAFETY: ignoring a signal or taking its default installs no handler, so no code of ours runs in a signal's context.
    unsafe {
        libc::signal(signal, with);
    }
}
