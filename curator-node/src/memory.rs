//! How the process holds memory.

#![allow(unsafe_code, reason = "the allocator is set up")]

/// Arenas that the C library's allocator may have.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 1;

/// Keeps what has been freed from being held many times over.
///
/// Pairs are decoded on threads that come and go, encoded on another, and freed on a third. With an arena for each of them,
/// as the allocator of glibc has it, memory that one gave up is of no use to the others, and grows for as long as pairs are
/// served. Few allocations are made for a pair, so that threads hardly wait for each other in one arena.
///
/// To be called before there are threads. It does nothing elsewhere than with glibc.
pub fn share_one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes two numbers and changes settings of the allocator; no other thread runs yet.
        let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
        // One that knows no such setting is left as it is.
        let _ = done;
    }
}
