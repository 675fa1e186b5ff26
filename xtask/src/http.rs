//! HTTP downloads that resume after an interruption.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ureq::http::{Response, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Number of consecutive attempts without a new byte before a download fails.
const ATTEMPTS: u32 = 3;

/// Error: the server answered a range request with the complete file.
#[derive(Debug)]
pub struct RangesUnsupported;

impl fmt::Display for RangesUnsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not support range requests")
    }
}

impl std::error::Error for RangesUnsupported {}

/// An error that a retry would not fix.
#[derive(Debug)]
struct PermanentError(String);

impl fmt::Display for PermanentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PermanentError {}

/// HTTP client that uses the proxies and certificates of the system.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    backoff: Duration,
}

impl Client {
    /// Creates a client that also trusts the root certificates in the PEM files `certificates`.
    pub fn new(certificates: &[PathBuf]) -> Self {
        let tls = TlsConfig::builder().root_certs(root_certificates(certificates)).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // Short, to move on to the next source soon.
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        Self { agent, backoff: Duration::from_millis(500) }
    }

    /// Returns the size of the file at `url` in bytes.
    ///
    /// # Errors
    /// [`RangesUnsupported`] if the server does not support range requests.
    pub fn size(&self, url: &str) -> Result<u64> {
        self.retry(url, || {
            let response = self.get(url, Some((0, Some(1))))?;
            match response.status().as_u16() {
                206 => Ok(content_range(&response)?.total.ok_or(RangesUnsupported)?),
                _ => Err(RangesUnsupported.into()),
            }
        })
    }

    /// Reads a small range of a file into memory.
    pub fn read(&self, url: &str, range: Range<u64>) -> Result<Vec<u8>> {
        self.retry(url, || {
            let response = self.get(url, Some((range.start, Some(range.end))))?;
            check_start(&response, range.start)?;
            let expected = range.end - range.start;
            let mut bytes = Vec::new();
            response.into_body().into_reader().take(expected).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != expected {
                bail!("received {} of {expected} bytes", bytes.len());
            }
            Ok(bytes)
        })
    }

    /// Downloads the file at `url`, or a range of it, to `to`; resumes after the bytes that `to`
    /// has.
    ///
    /// Calls `progress` with the number of bytes in `to` and the total, if known. The caller must
    /// verify the content: a resumed file may mix two versions of the file on the server.
    pub fn download(
        &self,
        url: &str,
        to: &Path,
        range: Option<Range<u64>>,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(to)
            .with_context(|| format!("cannot write {}", to.display()))?;
        let mut failures = 0;
        loop {
            let before = file.metadata()?.len();
            let error = match self.download_once(url, &mut file, range.clone(), progress) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.is::<RangesUnsupported>() || error.is::<PermanentError>() {
                return Err(error.context(format!("cannot download {url}")));
            }
            failures = if file.metadata()?.len() > before { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let hint = "check the network and run the command again to resume";
                return Err(error.context(format!("cannot download {url}; {hint}")));
            }
            std::thread::sleep(self.backoff * 2_u32.pow(failures));
        }
    }

    fn download_once(
        &self,
        url: &str,
        file: &mut File,
        range: Option<Range<u64>>,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let mut have = file.metadata()?.len();
        let mut total = range.as_ref().map(|range| range.end - range.start);
        if let Some(total) = total {
            if have > total {
                file.set_len(0)?;
                have = 0;
            }
            if have == total {
                progress(have, Some(total));
                return Ok(());
            }
        }
        let start = range.as_ref().map_or(0, |range| range.start) + have;
        let requested =
            (range.is_some() || have > 0).then_some((start, range.as_ref().map(|range| range.end)));
        let response = self.get(url, requested)?;
        match (response.status().as_u16(), requested) {
            (206, Some(_)) => {
                check_start(&response, start)?;
                if total.is_none() {
                    total = content_range(&response)?.total;
                }
            }
            (416, Some(_)) if range.is_none() => {
                // Either the file is complete, or it is longer than the server's.
                if content_range(&response).ok().and_then(|range| range.total) == Some(have) {
                    return Ok(());
                }
                file.set_len(0)?;
                bail!("the partial download does not match the server's file");
            }
            (200, Some(_)) if range.is_some() => return Err(RangesUnsupported.into()),
            (200, _) => {
                file.set_len(0)?;
                have = 0;
                total = content_length(&response);
            }
            (status, _) => {
                return Err(PermanentError(format!("the server answered {status}")).into());
            }
        }
        file.seek(SeekFrom::Start(have))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            progress(have, total);
            let n = body.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            have += n as u64;
            if total.is_some_and(|total| have > total) {
                return Err(PermanentError(String::from(
                    "the server sent more bytes than requested",
                ))
                .into());
            }
            file.write_all(&buffer[..n])
                .context("cannot write the download; check the free disk space")?;
        }
        match total {
            Some(total) if have < total => {
                bail!("connection closed after {have} of {total} bytes")
            }
            _ => Ok(()),
        }
    }

    /// Repeats `action` after transient errors, at most [`ATTEMPTS`] times.
    fn retry<T>(&self, url: &str, mut action: impl FnMut() -> Result<T>) -> Result<T> {
        let mut failures = 0;
        loop {
            let error = match action() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            if failures >= ATTEMPTS
                || error.is::<RangesUnsupported>()
                || error.is::<PermanentError>()
            {
                return Err(error.context(format!("cannot read {url}")));
            }
            std::thread::sleep(self.backoff * 2_u32.pow(failures));
        }
    }

    fn get(&self, url: &str, range: Option<(u64, Option<u64>)>) -> Result<Response<Body>> {
        // Ranges count bytes of the encoded body, so compression must be off.
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            let end = end.map_or(String::new(), |end| (end - 1).to_string());
            request = request.header(header::RANGE, format!("bytes={start}-{end}"));
        }
        let response = request.call()?;
        match response.status().as_u16() {
            408 | 429 | 500..=599 => bail!("the server answered {}", response.status()),
            400..=499 if response.status() != 416 => {
                Err(PermanentError(format!("the server answered {}", response.status())).into())
            }
            _ => Ok(response),
        }
    }

    /// Creates a client for tests, without pauses between attempts.
    #[cfg(test)]
    pub fn without_backoff() -> Self {
        Self { backoff: Duration::from_millis(1), ..Self::new(&[]) }
    }
}

struct ContentRange {
    start: u64,
    total: Option<u64>,
}

/// Parses `bytes 0-99/1234`, `bytes 0-99/*` or `bytes */1234`.
fn content_range(response: &Response<Body>) -> Result<ContentRange> {
    let value = response.headers().get(header::CONTENT_RANGE).ok_or(RangesUnsupported)?.to_str()?;
    let unreadable = || anyhow!("invalid Content-Range {value:?}");
    let (span, total) = value
        .strip_prefix("bytes ")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(unreadable)?;
    let start = match span.split_once('-') {
        Some((start, _)) => start.parse().map_err(|_| unreadable())?,
        None => 0,
    };
    Ok(ContentRange { start, total: total.parse().ok() })
}

/// Fails unless the response is a partial body that starts at `start`.
fn check_start(response: &Response<Body>, start: u64) -> Result<()> {
    if response.status() != 206 {
        return Err(RangesUnsupported.into());
    }
    if content_range(response)?.start != start {
        return Err(
            PermanentError(String::from("the server sent another range than requested")).into()
        );
    }
    Ok(())
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Loads the root certificates of the system, of `more`, and of the variables that pip, Requests
/// and curl read.
fn root_certificates(more: &[PathBuf]) -> RootCerts {
    let mut certificates: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    let named = ["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    let named = named.iter().filter_map(std::env::var_os).map(PathBuf::from);
    for path in named.chain(more.iter().cloned()) {
        let Ok(pem) = fs::read(&path) else { continue };
        for item in ureq::tls::parse_pem(&pem) {
            if let Ok(PemItem::Certificate(certificate)) = item {
                certificates.push(certificate);
            }
        }
    }
    if certificates.is_empty() {
        return RootCerts::WebPki;
    }
    RootCerts::new_with_certs(&certificates)
}

#[cfg(test)]
#[path = "http_tests.rs"]
pub mod tests;
