//! What the C library does with memory that a computation gives up.

#![allow(unsafe_code, reason = "the allocator is set up")]

/// Largest block that comes from the heap and not from the kernel, bytes: the most that glibc takes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGEST_OF_HEAP: libc::c_int = 32 << 20;
/// Free memory at the heap's end that stays with the process, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 1 << 30;

/// Keeps freed activations for the next step, for a process that does the same over and over.
///
/// Each step frees and takes hundreds of blocks of some megabytes. As glibc has it, each goes back to the kernel and comes
/// from it again, page by page and cleared: a tenth of a step on a processor. To be called before there are threads. It
/// does nothing elsewhere than with glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in [(libc::M_MMAP_THRESHOLD, LARGEST_OF_HEAP), (libc::M_TRIM_THRESHOLD, KEPT)] {
        // SAFETY: it takes two numbers and changes settings of the allocator.
        let done = unsafe { libc::mallopt(setting, value) };
        // One that knows no such setting is left as it is.
        let _ = done;
    }
}
