//! LibTorch's TCP store: key-value pairs shared by all ranks.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use tch::TchError;

use super::{Error, millis};
use crate::shim::{call_new, check};

#[repr(C)]
pub(super) struct RawStore {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn d2v_store(
        host: *const c_char,
        port: c_int,
        is_server: c_int,
        ranks: c_int,
        timeout_ms: i64,
        prefix: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut RawStore;
    fn d2v_store_free(store: *mut RawStore);
    fn d2v_store_set(
        store: *mut RawStore,
        key: *const c_char,
        data: *const c_char,
        length: usize,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_store_get(
        store: *mut RawStore,
        key: *const c_char,
        timeout_ms: i64,
        data: *mut *mut c_char,
        length: *mut usize,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_store_add(
        store: *mut RawStore,
        key: *const c_char,
        value: i64,
        sum: *mut i64,
        error: *mut *mut c_char,
    ) -> c_int;
    fn d2v_store_has(
        store: *mut RawStore,
        key: *const c_char,
        has: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
}

#[derive(Debug)]
struct Handle(*mut RawStore);

// SAFETY: the store's client locks each request; the last owner frees the store once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `d2v_store`, and this is the last owner.
        unsafe { d2v_store_free(self.0) }
    }
}

/// Key-value store for small values, shared by all ranks. Clones refer to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    handle: Arc<Handle>,
    rank: usize,
}

/// Address of a store.
pub(super) struct StoreAddress<'a> {
    pub host: &'a str,
    pub port: u16,
    /// Starts the server instead of only connecting to it.
    pub is_server: bool,
    /// Prefix of all keys.
    pub prefix: &'a str,
}

impl Store {
    pub(super) fn connect(
        address: &StoreAddress,
        rank: usize,
        ranks: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let failed = |reason: String| {
            let StoreAddress { host, port, .. } = address;
            Error::new(rank, "init_process_group", format!("{host}:{port}: {reason}"))
        };
        let text = |text: &str| CString::new(text).map_err(|e| failed(e.to_string()));
        let (host, prefix) = (text(address.host)?, text(address.prefix)?);
        let store = call_new(|error| {
            // SAFETY: the strings outlive the call.
            unsafe {
                d2v_store(
                    host.as_ptr(),
                    address.port.into(),
                    address.is_server.into(),
                    ranks as c_int,
                    millis(timeout),
                    prefix.as_ptr(),
                    error,
                )
            }
        })
        .map_err(|e| failed(super::reason(&e)))?;
        Ok(Self { handle: Arc::new(Handle(store)), rank })
    }

    pub(super) fn raw(&self) -> *mut RawStore {
        self.handle.0
    }

    fn call(
        &self,
        operation: &'static str,
        key: &str,
        call: impl FnOnce(*mut RawStore, *const c_char, *mut *mut c_char) -> c_int,
    ) -> Result<(), Error> {
        let failed =
            |reason: String| Error::new(self.rank, operation, format!("`{key}`: {reason}"));
        let c_key = CString::new(key).map_err(|e| failed(e.to_string()))?;
        check(|error| call(self.raw(), c_key.as_ptr(), error))
            .map_err(|e: TchError| failed(super::reason(&e)))
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// If the store is unreachable.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        self.call("store.set", key, |store, key, error| {
            // SAFETY: `value` is valid for `value.len()` bytes; the store is alive.
            unsafe { d2v_store_set(store, key, value.as_ptr().cast(), value.len(), error) }
        })
    }

    /// Returns the value of `key`, waiting until a rank has set it.
    ///
    /// # Errors
    /// If it is not set within `timeout`, or the store is unreachable.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<String, Error> {
        let (mut data, mut length) = (std::ptr::null_mut::<c_char>(), 0);
        self.call("store.get", key, |store, key, error| {
            // SAFETY: the store is alive; `data` and `length` are valid for writes.
            unsafe { d2v_store_get(store, key, millis(timeout), &mut data, &mut length, error) }
        })?;
        // SAFETY: on success `data` points to `length` bytes from `malloc`, which the caller frees.
        unsafe {
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), length);
            let value = String::from_utf8_lossy(bytes).into_owned();
            libc::free(data.cast());
            Ok(value)
        }
    }

    /// Returns true if `key` has been set.
    ///
    /// # Errors
    /// If the store is unreachable.
    pub fn has(&self, key: &str) -> Result<bool, Error> {
        let mut has = 0;
        self.call("store.has", key, |store, key, error| {
            // SAFETY: the store is alive; the result is valid for writes.
            unsafe { d2v_store_has(store, key, &mut has, error) }
        })?;
        Ok(has != 0)
    }

    /// Adds `value` to the counter `key`, initially 0, and returns the sum.
    ///
    /// # Errors
    /// If the store is unreachable.
    pub fn add(&self, key: &str, value: i64) -> Result<i64, Error> {
        let mut sum = 0;
        self.call("store.add", key, |store, key, error| {
            // SAFETY: the store is alive; the result is valid for writes.
            unsafe { d2v_store_add(store, key, value, &mut sum, error) }
        })?;
        Ok(sum)
    }
}
