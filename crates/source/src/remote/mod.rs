//! Shards in object stores and on web servers, read by blocks that are kept on the disk.

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

use crate::SourceConfig;

mod blocks;
mod listing;

pub(crate) use blocks::Remote;

/// First wait before a request is tried again; the next ones are twice as long each.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Connections to all stores that a source's shards are in.
pub(crate) struct Stores {
    known: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    timeout: Duration,
    retries: u32,
    block: u64,
}

/// A store, and where in it something is.
struct Place {
    store: Arc<dyn ObjectStore>,
    url: Url,
    path: Path,
    scheme: ObjectStoreScheme,
}

impl Stores {
    pub fn new(config: &SourceConfig) -> Self {
        Self {
            known: Mutex::default(),
            timeout: Duration::from_secs(config.timeout_seconds),
            retries: config.retries,
            block: config.block_bytes,
        }
    }

    /// The store of a URL. What it needs to be let in is in the environment, by the names that each cloud's
    /// own tools have.
    fn place(&self, place: &str) -> Result<Place, String> {
        // In a store's names a question mark is one, or means any character.
        let web = place.starts_with("http");
        let whole = if web { place.to_owned() } else { place.replace('?', "%3F") };
        let url = Url::parse(&whole).map_err(|error| format!("no URL: {error}"))?;
        if url.query().is_some() {
            return Err("has a query, which is not known in places of shards".into());
        }
        let known = "s3://, gs://, az:// or https:// are known";
        let (scheme, path) =
            ObjectStoreScheme::parse(&url).map_err(|error| format!("{error}; {known}"))?;
        let base = url[..url::Position::BeforePath].to_owned();
        let mut stores = self.known.lock().unwrap_or_else(|e| e.into_inner());
        let store = match stores.get(&base) {
            Some(store) => Arc::clone(store),
            None => {
                let store = self.connect(&scheme, &url, &base)?;
                stores.insert(base, Arc::clone(&store));
                store
            }
        };
        Ok(Place { store, url, path, scheme })
    }

    fn connect(
        &self,
        scheme: &ObjectStoreScheme,
        url: &Url,
        base: &str,
    ) -> Result<Arc<dyn ObjectStore>, String> {
        // Nobody else in this process asks for TLS of this kind, or they have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = ClientOptions::new()
            .with_timeout(self.timeout)
            .with_connect_timeout(self.timeout)
            .with_allow_http(url.scheme() == "http" || asks_for_http());
        // `attempt` tries again, whatever the reason.
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
            _ => Err("s3://, gs://, az:// or https:// are known".into()),
        }
    }

    /// What `ask` is answered, asked again after ever longer waits where that can help.
    fn attempt<T, F>(&self, ask: impl Fn() -> F) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let mut wait = FIRST_WAIT;
        for attempt in 0.. {
            match wait_for(ask())? {
                Ok(answer) => return Ok(answer),
                Err(error) if is_final(&error) || attempt == self.retries => {
                    let times = attempt + 1;
                    let tried = if times > 1 { format!(", {times} times") } else { String::new() };
                    return Err(format!("{}{tried}", one_line(&error)));
                }
                Err(_) => {
                    // Those who failed together do not come back together.
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    std::thread::sleep(wait.mul_f64(0.5 + f64::from(now.subsec_micros()) / 1e6));
                    wait = LONGEST_WAIT.min(2 * wait);
                }
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Whether the environment allows S3's requests without TLS, as stores of one's own may want it.
fn asks_for_http() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1")
}

/// Whether the same will be answered again.
fn is_final(error: &object_store::Error) -> bool {
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

/// The error and what is below it, of which the last tells most.
fn one_line(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Without keys, clouds' machines are asked for some at an address of their own.
    match line.contains("169.254.169.254") {
        true => format!("no keys of this cloud in the environment (see docs/scale.md), and {line}"),
        false => line,
    }
}

/// Runs a future on the one thread that talks to stores, and waits for it.
fn wait_for<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = channel();
    runtime()?.spawn(async move {
        // Whoever asked waits; should it be gone, so is the answer.
        let _ = send.send(future.await);
    });
    receive.recv().map_err(|_| "the thread that talks to stores is gone".into())
}

/// The thread that waits for all answers of all stores, started when it is first needed.
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
    fn errors_are_one_line_that_says_what_to_do() {
        let says = |text: &str| {
            one_line(&object_store::Error::Generic { store: "S3", source: text.into() })
        };
        assert_eq!(says("no\n such  thing"), "Generic S3 error: no such thing");
        let keys = says("Error performing PUT http://169.254.169.254/latest/api/token");
        assert!(keys.starts_with("no keys of this cloud in the environment (see docs/"), "{keys}");
    }
}
