//! Downloads that go on where they stopped.

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

/// How often a request that brought no new byte is tried again.
const ATTEMPTS: u32 = 3;

/// The server answered a range request with the whole file.
#[derive(Debug)]
pub struct NoRanges;

impl fmt::Display for NoRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not send parts of files")
    }
}

impl std::error::Error for NoRanges {}

/// A failure that trying again would not cure.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// An HTTP client with the machine's own proxies and certificates.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    pause: Duration,
}

impl Client {
    /// `certificates`: further files of root certificates, such as the one pip is told to use.
    pub fn new(certificates: &[PathBuf]) -> Self {
        let tls = TlsConfig::builder().root_certs(root_certificates(certificates)).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // Short: a source that does not answer is given up for the next one.
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        Self { agent, pause: Duration::from_millis(500) }
    }

    /// The size of the file at `url`, if the server says it and sends parts of files.
    ///
    /// # Errors
    /// [`NoRanges`] when only whole files can be had.
    pub fn size(&self, url: &str) -> Result<u64> {
        self.persist(url, || {
            let response = self.get(url, Some((0, Some(1))))?;
            match response.status().as_u16() {
                206 => Ok(content_range(&response)?.total.ok_or(NoRanges)?),
                _ => Err(NoRanges.into()),
            }
        })
    }

    /// A small part of a file, into memory.
    pub fn read(&self, url: &str, range: Range<u64>) -> Result<Vec<u8>> {
        self.persist(url, || {
            let response = self.get(url, Some((range.start, Some(range.end))))?;
            check_start(&response, range.start)?;
            let wanted = range.end - range.start;
            let mut bytes = Vec::new();
            response.into_body().into_reader().take(wanted).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != wanted {
                bail!("{} of {wanted} bytes arrived", bytes.len());
            }
            Ok(bytes)
        })
    }

    /// Brings the file at `url`, or a part of it, to `to`, going on after the bytes that `to` already has.
    ///
    /// `progress` is told how many bytes `to` holds and how many there will be. Whether they are the right ones is for the
    /// caller to check: a continued file may mix two versions of what the server has.
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
            if error.is::<NoRanges>() || error.is::<Refused>() {
                return Err(error.context(format!("cannot download {url}")));
            }
            failures = if file.metadata()?.len() > before { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let hint = "look at the network and run the command again, it goes on from here";
                return Err(error.context(format!("cannot download {url} ({hint})")));
            }
            std::thread::sleep(self.pause * 2_u32.pow(failures));
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
        let mut wanted = range.as_ref().map(|range| range.end - range.start);
        if let Some(wanted) = wanted {
            if have > wanted {
                file.set_len(0)?;
                have = 0;
            }
            if have == wanted {
                progress(have, Some(wanted));
                return Ok(());
            }
        }
        let start = range.as_ref().map_or(0, |range| range.start) + have;
        let ask =
            (range.is_some() || have > 0).then_some((start, range.as_ref().map(|range| range.end)));
        let response = self.get(url, ask)?;
        match (response.status().as_u16(), ask) {
            (206, Some(_)) => {
                check_start(&response, start)?;
                if wanted.is_none() {
                    wanted = content_range(&response)?.total;
                }
            }
            (416, Some(_)) if range.is_none() => {
                // Nothing is left to send, or what we have is longer than what the server has.
                if content_range(&response).ok().and_then(|range| range.total) == Some(have) {
                    return Ok(());
                }
                file.set_len(0)?;
                bail!("the partial file does not fit the server's");
            }
            (200, Some(_)) if range.is_some() => return Err(NoRanges.into()),
            (200, _) => {
                file.set_len(0)?;
                have = 0;
                wanted = content_length(&response);
            }
            (status, _) => return Err(Refused(format!("the server answered {status}")).into()),
        }
        file.seek(SeekFrom::Start(have))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            progress(have, wanted);
            let n = body.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            have += n as u64;
            if wanted.is_some_and(|wanted| have > wanted) {
                return Err(
                    Refused(String::from("the server sent more than it was asked for")).into()
                );
            }
            file.write_all(&buffer[..n])
                .context("cannot write the download (is the disk full?)")?;
        }
        match wanted {
            Some(wanted) if have < wanted => {
                bail!("the connection ended after {have} of {wanted} bytes")
            }
            _ => Ok(()),
        }
    }

    fn persist<T>(&self, url: &str, mut action: impl FnMut() -> Result<T>) -> Result<T> {
        let mut failures = 0;
        loop {
            let error = match action() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            if failures >= ATTEMPTS || error.is::<NoRanges>() || error.is::<Refused>() {
                return Err(error.context(format!("cannot read {url}")));
            }
            std::thread::sleep(self.pause * 2_u32.pow(failures));
        }
    }

    fn get(&self, url: &str, range: Option<(u64, Option<u64>)>) -> Result<Response<Body>> {
        // Compressed on the way, the bytes would not be those that ranges count.
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            let end = end.map_or(String::new(), |end| (end - 1).to_string());
            request = request.header(header::RANGE, format!("bytes={start}-{end}"));
        }
        let response = request.call()?;
        match response.status().as_u16() {
            408 | 429 | 500..=599 => bail!("the server answered {}", response.status()),
            400..=499 if response.status() != 416 => {
                Err(Refused(format!("the server answered {}", response.status())).into())
            }
            _ => Ok(response),
        }
    }

    /// A client for tests, which do not wait between attempts.
    #[cfg(test)]
    pub fn impatient() -> Self {
        Self { pause: Duration::from_millis(1), ..Self::new(&[]) }
    }
}

struct ContentRange {
    start: u64,
    total: Option<u64>,
}

/// `bytes 0-99/1234`, `bytes 0-99/*` or `bytes */1234`.
fn content_range(response: &Response<Body>) -> Result<ContentRange> {
    let value = response.headers().get(header::CONTENT_RANGE).ok_or(NoRanges)?.to_str()?;
    let unreadable = || anyhow!("unreadable Content-Range {value:?}");
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

fn check_start(response: &Response<Body>, start: u64) -> Result<()> {
    if response.status() != 206 {
        return Err(NoRanges.into());
    }
    if content_range(response)?.start != start {
        return Err(
            Refused(String::from("the server sent another part than it was asked for")).into()
        );
    }
    Ok(())
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The machine's own roots, and those that its other download tools are told to trust.
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
