//! `shim/gloo_shim.h` as Rust sees it, and its statuses as errors. Nothing else in this crate calls C++.

#![allow(unsafe_code, reason = "declares the C++ shim")]

use crate::error::CollectiveError;
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// Room for one error text of the shim, zero included.
pub const TEXT_BYTES: usize = 1024;

#[repr(C)]
pub struct Connect {
    pub host: *const c_char,
    pub port: u16,
    pub listen_fd: i32,
    pub interface_ip: *const c_char,
    pub prefix: *const c_char,
    pub rank: i32,
    pub world: i32,
    pub timeout_ms: i64,
    pub threads: i32,
}

/// A process group, opaque.
#[repr(C)]
pub struct Group {
    _opaque: [u8; 0],
}

/// An operation in flight, opaque.
#[repr(C)]
pub struct Op {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    pub fn cg_connect(
        options: *const Connect,
        out: *mut *mut Group,
        text: *mut c_char,
        text_bytes: usize,
    ) -> i32;
    pub fn cg_all_reduce(
        group: *mut Group,
        tensor: *const c_void,
        maximum: i32,
        timeout_ms: i64,
        out: *mut *mut Op,
        text: *mut c_char,
        text_bytes: usize,
    ) -> i32;
    pub fn cg_broadcast(
        group: *mut Group,
        tensor: *const c_void,
        root: i32,
        timeout_ms: i64,
        out: *mut *mut Op,
        text: *mut c_char,
        text_bytes: usize,
    ) -> i32;
    pub fn cg_wait(op: *mut Op, timeout_ms: i64, text: *mut c_char, text_bytes: usize) -> i32;
    pub fn cg_op_free(op: *mut Op);
    pub fn cg_abort(group: *mut Group);
    pub fn cg_leave(group: *mut Group, timeout_ms: i64, text: *mut c_char, text_bytes: usize) -> i32;
    pub fn cg_group_free(group: *mut Group);
}

/// Calls the shim with room for its error text, and turns the status into a result.
pub fn checked(
    operation: &'static str,
    limit: Duration,
    call: impl FnOnce(*mut c_char, usize) -> i32,
) -> Result<(), CollectiveError> {
    let mut text = [0u8; TEXT_BYTES];
    let status = call(text.as_mut_ptr().cast(), TEXT_BYTES);
    // Statuses are those of `CgStatus`.
    match status {
        0 => Ok(()),
        1 => Err(CollectiveError::Timeout { operation, limit, detail: readable(&text) }),
        2 => Err(CollectiveError::PeerLost { operation, detail: readable(&text) }),
        3 => Err(CollectiveError::Aborted),
        _ => Err(CollectiveError::Backend { operation, detail: readable(&text) }),
    }
}

/// Whole milliseconds, at least one: zero would mean "no limit" to c10d.
pub fn milliseconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX / 2).clamp(1, 1 << 40)
}

/// The text up to its zero, without the source position that Gloo puts in front (`[.../pair.cc:538] `).
fn readable(text: &[u8]) -> String {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]);
    match text.split_once("] ") {
        Some((position, rest)) if position.starts_with('[') && position.contains(".cc:") => rest.to_owned(),
        _ => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_lose_their_source_position_and_what_follows_the_zero() {
        assert_eq!(
            readable(b"[../gloo/transport/tcp/pair.cc:538] closed by peer [::1]:1\0junk"),
            "closed by peer [::1]:1"
        );
        assert_eq!(readable(b"[127.0.0.1] was reset\0"), "[127.0.0.1] was reset");
        assert_eq!(readable(b"no zero"), "no zero");
    }

    #[test]
    fn a_limit_is_never_zero_and_never_overflows() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_micros(10)), 1);
        assert_eq!(milliseconds(Duration::from_secs(2)), 2000);
        assert_eq!(milliseconds(Duration::MAX), 1 << 40);
    }

    #[test]
    fn statuses_become_errors() {
        let limit = Duration::from_secs(1);
        let of = |status| checked("all-reduce", limit, |_, _| status);
        assert_eq!(of(0), Ok(()));
        assert!(of(1).unwrap_err().is_timeout());
        assert!(of(2).unwrap_err().is_peer_lost());
        assert!(of(3).unwrap_err().is_aborted());
        assert!(matches!(of(99), Err(CollectiveError::Backend { .. })));
    }
}
