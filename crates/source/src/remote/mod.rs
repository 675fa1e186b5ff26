//! Shards in object stores and on web servers, read in blocks that are cached on disk.

use std::collections::HashMap;
use std::future::Future;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::config::SourceConfig;

mod blocks;
mod listing;

pub(crate) use blocks::Remote;

/// Wait before the first retry of a request; doubled for each further one.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(20);

/// Connections to the stores of a source's shards.
pub(crate) struct Stores {
    connected: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    timeout: Duration,
    retries: u32,
    block_bytes: u64,
}

/// Supported URL schemes, for messages.
const SCHEMES: &str = "use s3://, gs://, az:// or https://";

/// An object or prefix in a store.
struct StoreLocation {
    store: Arc<dyn ObjectStore>,
    url: Url,
    path: Path,
    scheme: ObjectStoreScheme,
}

impl Stores {
    pub fn new(config: &SourceConfig) -> Self {
        Self {
            connected: Mutex::default(),
            timeout: Duration::from_secs(config.timeout_seconds),
            retries: config.retries,
            block_bytes: config.block_bytes,
        }
    }

    /// Resolves a URL and connects to its store, with the credentials in the environment variables
    /// of the cloud's own tools.
    fn locate(&self, location: &str) -> Result<StoreLocation, String> {
        // In object names a question mark is literal or a glob, not the start of a query.
        let is_http = location.starts_with("http");
        let escaped = if is_http { location.to_owned() } else { location.replace('?', "%3F") };
        let url = Url::parse(&escaped).map_err(|error| format!("invalid URL: {error}"))?;
        if url.query().is_some() {
            return Err("URLs of shards cannot have a query; remove it".into());
        }
        let (scheme, path) =
            ObjectStoreScheme::parse(&url).map_err(|error| format!("{error}; {SCHEMES}"))?;
        let base = url[..url::Position::BeforePath].to_owned();
        let mut stores = self.connected.lock().unwrap_or_else(|e| e.into_inner());
        let store = match stores.get(&base) {
            Some(store) => Arc::clone(store),
            None => {
                let store = self.connect(&scheme, &url, &base)?;
                stores.insert(base, Arc::clone(&store));
                store
            }
        };
        Ok(StoreLocation { store, url, path, scheme })
    }

    fn connect(
        &self,
        scheme: &ObjectStoreScheme,
        url: &Url,
        base: &str,
    ) -> Result<Arc<dyn ObjectStore>, String> {
        // Fails only if a TLS provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = ClientOptions::new()
            .with_timeout(self.timeout)
            .with_connect_timeout(self.timeout)
            .with_allow_http(url.scheme() == "http" || allows_http());
        // `with_retries` retries instead.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        fn shared<S: ObjectStore>(
            store: object_store::Result<S>,
        ) -> Result<Arc<dyn ObjectStore>, String> {
            store.map(|store| Arc::new(store) as _).map_err(|error| one_line(&error))
        }
        match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let builder = AmazonS3Builder::from_env().with_client_options(options);
                shared(builder.with_url(url.as_str()).with_retry(retry).build())
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let builder = GoogleCloudStorageBuilder::from_env().with_client_options(options);
                shared(builder.with_url(url.as_str()).with_retry(retry).build())
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let builder = MicrosoftAzureBuilder::from_env().with_client_options(options);
                shared(builder.with_url(url.as_str()).with_retry(retry).build())
            }
            ObjectStoreScheme::Http => {
                let builder = HttpBuilder::new().with_url(base).with_client_options(options);
                shared(builder.with_retry(retry).build())
            }
            _ => Err(format!("unsupported scheme {}://; {SCHEMES}", url.scheme())),
        }
    }

    /// Sends a request, and retries transient failures with exponential backoff.
    fn with_retries<T, F>(&self, request: impl Fn() -> F) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let mut wait = INITIAL_BACKOFF;
        for attempt in 0.. {
            match block_on(request())? {
                Ok(response) => return Ok(response),
                Err(error) if is_permanent(&error) || attempt == self.retries => {
                    let attempts = match attempt {
                        0 => String::new(),
                        retries => format!(", after {} attempts", retries + 1),
                    };
                    return Err(format!("{}{attempts}", one_line(&error)));
                }
                Err(_) => {
                    // Jitter, so that requests that failed together are not retried together.
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    std::thread::sleep(wait.mul_f64(0.5 + f64::from(now.subsec_micros()) / 1e6));
                    wait = MAX_BACKOFF.min(2 * wait);
                }
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Returns true if the environment allows S3 requests without TLS, for self-hosted stores.
fn allows_http() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1")
}

/// Returns true if retrying cannot help.
fn is_permanent(error: &object_store::Error) -> bool {
    use object_store::Error::*;
    matches!(
        error,
        NotFound { .. }
            | InvalidPath { .. }
            | NotSupported { .. }
            | Precondition { .. }
            | NotImplemented { .. }
            | PermissionDenied { .. }
            | Unauthenticated { .. }
            | UnknownConfigurationKey { .. }
    )
}

/// Formats an error with its sources in one line.
fn one_line(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Without credentials, the client queries the cloud's instance metadata service at this
    // address.
    match line.contains("169.254.169.254") {
        true => format!("no credentials in the environment (see docs/scale.md): {line}"),
        false => line,
    }
}

/// Runs a future on the runtime thread and waits for it.
fn block_on<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = channel();
    runtime()?.spawn(async move {
        // The receiver waits below; it cannot be gone.
        let _ = send.send(future.await);
    });
    receive.recv().map_err(|_| "the thread of remote stores has exited".into())
}

/// Returns the runtime of all stores, whose thread is started on first use.
fn runtime() -> Result<&'static tokio::runtime::Handle, String> {
    static RUNTIME: OnceLock<Result<tokio::runtime::Handle, String>> = OnceLock::new();
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new().name("stores".into()).spawn(run)?;
        Ok(handle)
    };
    let runtime = RUNTIME.get_or_init(|| start().map_err(|e: std::io::Error| e.to_string()));
    runtime.as_ref().map_err(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_one_line_with_remedy() {
        let format = |text: &str| {
            one_line(&object_store::Error::Generic { store: "S3", source: text.into() })
        };
        assert_eq!(format("no\n such  thing"), "Generic S3 error: no such thing");
        let credentials = format("Error performing PUT http://169.254.169.254/latest/api/token");
        assert!(
            credentials.starts_with("no credentials in the environment (see docs/"),
            "{credentials}"
        );
    }
}
