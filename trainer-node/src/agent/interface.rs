//! Which network interface carries an address.

#![allow(unsafe_code, reason = "asks the system for its interfaces")]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kernel's list, freed when dropped.
struct Addresses(*mut libc::ifaddrs);

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: the list came from `getifaddrs` and is freed here alone.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

/// Name of the interface that carries `wanted`, such as `eth0`; `None` if none on this machine does.
pub fn carrying(wanted: IpAddr) -> io::Result<Option<String>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is writable; on success it is a list that `Addresses` frees.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let list = Addresses(first);
    let mut next = list.0;
    while !next.is_null() {
        // SAFETY: an entry of the list, which lives until the end of this function.
        let entry = unsafe { &*next };
        if !entry.ifa_name.is_null() && address(entry.ifa_addr) == Some(wanted) {
            // SAFETY: not null, and zero-terminated by the system.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
        next = entry.ifa_next;
    }
    Ok(None)
}

/// The address in an entry, if it is one of IP.
fn address(socket: *const libc::sockaddr) -> Option<IpAddr> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null; the family says which of the types lies there, and the system aligns it for that.
    unsafe {
        match i32::from((*socket).sa_family) {
            libc::AF_INET => {
                let bytes = (*socket.cast::<libc::sockaddr_in>()).sin_addr.s_addr.to_ne_bytes();
                Some(Ipv4Addr::from(bytes).into())
            }
            libc::AF_INET6 => {
                let bytes = (*socket.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr;
                Some(Ipv6Addr::from(bytes).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_a_name_and_a_foreign_address_none() {
        // Linux calls it so everywhere.
        assert_eq!(carrying(Ipv4Addr::LOCALHOST.into()).unwrap().as_deref(), Some("lo"));
        // Kept for documents (RFC 5737, RFC 3849): no machine has them.
        assert_eq!(carrying("192.0.2.1".parse().unwrap()).unwrap(), None);
        assert_eq!(carrying("2001:db8::1".parse().unwrap()).unwrap(), None);
    }
}
