//! Shared libraries opened at run time.

#![allow(unsafe_code, reason = "loads libraries at run time")]

use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Symbols are found through the handle alone.
    Local,
    /// Symbols serve libraries that are loaded later, too.
    Global,
}

/// A loaded library. It stays loaded until the process ends: code of it may run in threads that it has started.
pub struct DynamicLibrary(NonNull<c_void>);

// SAFETY: the handle is only passed to `dlsym`, which may be called from any thread.
unsafe impl Send for DynamicLibrary {}
// SAFETY: as above.
unsafe impl Sync for DynamicLibrary {}

impl DynamicLibrary {
    pub fn open(name: &CStr, visibility: Visibility) -> Result<Self, String> {
        let scope = match visibility {
            Visibility::Local => libc::RTLD_LOCAL,
            Visibility::Global => libc::RTLD_GLOBAL,
        };
        // SAFETY: the name ends in zero. The library's initialisers run: it is one of NVIDIA's or libtorch's own.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | scope) };
        NonNull::new(handle).map(Self).ok_or_else(last_error)
    }

    /// The function `name`.
    ///
    /// # Safety
    /// `F` must be the function's own type, a `fn` pointer.
    pub unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: the handle is open and the name ends in zero.
        let address = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        if address.is_null() {
            return Err(last_error());
        }
        // SAFETY: of one size, as asserted, and of the right type, as the caller promises.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}

/// Folder of a library that this process has loaded, such as `libtorch_cpu.so`; none if it has not, or the system does not
/// tell.
pub fn folder_of_loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    // Address, rights, offset, device, inode, path.
    let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)).map(Path::new));
    let mut of_name = paths.filter(|path| path.file_name().is_some_and(|file| file == name));
    of_name.next()?.parent().map(Path::to_owned)
}

fn last_error() -> String {
    // SAFETY: the text belongs to this thread until its next `dl*` call, and is copied at once.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error of the dynamic loader".to_owned();
    }
    // SAFETY: not null, and zero-terminated.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_it() {
        let error = DynamicLibrary::open(c"libcrescendo-is-not-there.so", Visibility::Local).err();
        assert!(error.is_some_and(|text| text.contains("libcrescendo-is-not-there.so")));
    }

    #[test]
    fn functions_are_found_by_name() {
        let libc = DynamicLibrary::open(c"libc.so.6", Visibility::Local).unwrap();
        // SAFETY: that is the type of abs(3).
        let abs: unsafe extern "C" fn(i32) -> i32 = unsafe { libc.function(c"abs") }.unwrap();
        // SAFETY: no precondition but that the result fits.
        assert_eq!(unsafe { abs(-7) }, 7);
        // SAFETY: never called.
        assert!(unsafe { libc.function::<unsafe extern "C" fn()>(c"crescendo_is_not_there") }.is_err());
    }
}
