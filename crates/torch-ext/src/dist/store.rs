//! What all ranks can read and write: LibTorch's TCP store.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use tch::TchError;

use super::{Error, millis};
use crate::shim::{check, made};

#[repr(C)]
pub(super) struct RawStore {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn d2v_store(
        host: *const c_char,
        port: c_int,
        serve: c_int,
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
struct Owned(*mut RawStore);

// SAFETY: a client of the store takes a lock for each request, and the store is freed once, by the last owner.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by `d2v_store`, and nobody else has it any more.
        unsafe { d2v_store_free(self.0) }
    }
}

/// Small values by key, for all ranks. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    owned: Arc<Owned>,
    rank: usize,
}

/// Where a store is.
pub(super) struct Address<'a> {
    pub host: &'a str,
    pub port: u16,
    /// Opens it rather than waiting for the one who does.
    pub serve: bool,
    /// Before all keys.
    pub prefix: &'a str,
}

impl Store {
    pub(super) fn connect(
        address: &Address,
        rank: usize,
        ranks: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let failed = |reason: String| {
            let Address { host, port, .. } = address;
            Error::new(rank, "meeting the others", format!("{host}:{port}: {reason}"))
        };
        let text = |text: &str| CString::new(text).map_err(|e| failed(e.to_string()));
        let (host, prefix) = (text(address.host)?, text(address.prefix)?);
        let store = made(|error| {
            // SAFETY: the strings outlive the call.
            unsafe {
                d2v_store(
                    host.as_ptr(),
                    address.port.into(),
                    address.serve.into(),
                    ranks as c_int,
                    millis(timeout),
                    prefix.as_ptr(),
                    error,
                )
            }
        })
        .map_err(|e| failed(super::reason(&e)))?;
        Ok(Self { owned: Arc::new(Owned(store)), rank })
    }

    pub(super) fn raw(&self) -> *mut RawStore {
        self.owned.0
    }

    fn call(
        &self,
        what: &'static str,
        key: &str,
        call: impl FnOnce(*mut RawStore, *const c_char, *mut *mut c_char) -> c_int,
    ) -> Result<(), Error> {
        let failed = |reason: String| Error::new(self.rank, what, format!("`{key}`: {reason}"));
        let c_key = CString::new(key).map_err(|e| failed(e.to_string()))?;
        check(|error| call(self.raw(), c_key.as_ptr(), error))
            .map_err(|e: TchError| failed(super::reason(&e)))
    }

    /// Puts a value in the key's place.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        self.call("store.set", key, |store, key, error| {
            // SAFETY: `value` is `value.len()` bytes that outlive the call; the store is alive.
            unsafe { d2v_store_set(store, key, value.as_ptr().cast(), value.len(), error) }
        })
    }

    /// The key's value; waits until somebody has set it.
    ///
    /// # Errors
    /// After `timeout`, or if the store is gone.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<String, Error> {
        let (mut data, mut length) = (std::ptr::null_mut::<c_char>(), 0);
        self.call("store.get", key, |store, key, error| {
            // SAFETY: the store is alive; both results have a place.
            unsafe { d2v_store_get(store, key, millis(timeout), &mut data, &mut length, error) }
        })?;
        // SAFETY: on success the shim leaves `length` bytes from `malloc`, ours to free.
        unsafe {
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), length);
            let value = String::from_utf8_lossy(bytes).into_owned();
            libc::free(data.cast());
            Ok(value)
        }
    }

    /// Whether somebody has set the key.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn has(&self, key: &str) -> Result<bool, Error> {
        let mut has = 0;
        self.call("store.has", key, |store, key, error| {
            // SAFETY: the store is alive; the result has a place.
            unsafe { d2v_store_has(store, key, &mut has, error) }
        })?;
        Ok(has != 0)
    }

    /// Adds to the key's number, 0 at first, and returns the sum.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn add(&self, key: &str, value: i64) -> Result<i64, Error> {
        let mut sum = 0;
        self.call("store.add", key, |store, key, error| {
            // SAFETY: the store is alive; the result has a place.
            unsafe { d2v_store_add(store, key, value, &mut sum, error) }
        })?;
        Ok(sum)
    }
}
