//! A local web server and S3 server of a directory, with injected faults.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A fault injected into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    /// A response with this status.
    Status(u16),
    /// The connection closes in the middle of the body.
    Cut,
    /// The response is delayed by this many milliseconds.
    Slow(u64),
}

/// Returns the fault of a request by its number.
type Plan = Box<dyn Fn(u64) -> Fault + Send + Sync>;

pub struct Store {
    pub port: u16,
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    plan: Mutex<Plan>,
    latency: Duration,
    requests: AtomicU64,
    at_once: AtomicU64,
    most_at_once: AtomicU64,
    happened: Mutex<HashMap<Fault, u64>>,
}

impl Store {
    /// Serves the files below `root`: `/PATH` as a web server, and `/bucket/PATH` as S3.
    pub fn serve(root: PathBuf, latency: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let plan: Mutex<Plan> = Mutex::new(Box::new(|_| Fault::None));
        let (requests, at_once, most_at_once, happened) = Default::default();
        let inner = Inner { root, plan, latency, requests, at_once, most_at_once, happened };
        let inner = Arc::new(inner);
        let served = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inner = Arc::clone(&served);
                // Clients may close the connection.
                std::thread::spawn(move || inner.respond(stream).ok());
            }
        });
        Self { port, inner }
    }

    pub fn plan(&self, plan: impl Fn(u64) -> Fault + Send + Sync + 'static) {
        *self.inner.plan.lock().expect("no panic") = Box::new(plan);
    }

    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Relaxed)
    }

    /// Returns the maximum number of concurrent requests.
    pub fn most_at_once(&self) -> u64 {
        self.inner.most_at_once.load(Relaxed)
    }

    /// Returns how often a fault was injected.
    pub fn happened(&self, fault: Fault) -> u64 {
        *self.inner.happened.lock().expect("no panic").get(&fault).unwrap_or(&0)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

impl Inner {
    fn respond(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let number = self.requests.fetch_add(1, Relaxed);
        let fault = (self.plan.lock().expect("no panic"))(number);
        *self.happened.lock().expect("no panic").entry(fault).or_default() += 1;
        self.most_at_once.fetch_max(self.at_once.fetch_add(1, Relaxed) + 1, Relaxed);
        std::thread::sleep(self.latency);
        self.at_once.fetch_sub(1, Relaxed);
        if let Fault::Slow(millis) = fault {
            std::thread::sleep(Duration::from_millis(millis));
        }
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.trim_start_matches('/');
        let path = path.strip_prefix("bucket").unwrap_or(path).trim_start_matches('/');

        let (status, extra, body) = match fault {
            Fault::Status(status) => (status, String::new(), b"<Error/>".to_vec()),
            _ if query.contains("list-type=2") => (200, String::new(), self.listing(query)),
            _ => self.file(path, &headers),
        };
        let (date, len) = ("Thu, 26 Nov 2026 00:00:00 GMT", body.len());
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close\r\n\
             Last-Modified: {date}\r\nAccept-Ranges: bytes\r\n{extra}\r\n"
        )?;
        if method != "HEAD" {
            let sent = if fault == Fault::Cut { len / 2 } else { len };
            stream.write_all(&body[..sent])?;
        }
        stream.flush()
    }

    fn file(&self, path: &str, headers: &HashMap<String, String>) -> (u16, String, Vec<u8>) {
        let Ok(content) = fs::read(self.root.join(path)) else {
            return (404, String::new(), Vec::new());
        };
        let tag = format!("\"{}\"", crate::support::digest(&content));
        if headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
            return (412, String::new(), Vec::new());
        }
        let range = headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let range = range.and_then(|range| range.split_once('-'));
        let range = range.and_then(|(a, b)| Some((a.parse().ok()?, b.parse::<usize>().ok()? + 1)));
        let Some((start, end)) = range else { return (200, format!("ETag: {tag}\r\n"), content) };
        let (end, len): (usize, usize) = (end.min(content.len()), content.len());
        let extra = format!("ETag: {tag}\r\nContent-Range: bytes {start}-{}/{len}\r\n", end - 1);
        (206, extra, content[start..end].to_vec())
    }

    /// Returns S3's listing of a prefix, in pages of three.
    fn listing(&self, query: &str) -> Vec<u8> {
        let of = |name: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            pair.unwrap_or("").replace("%2F", "/")
        };
        let (prefix, from) = (of("prefix"), of("continuation-token").parse().unwrap_or(0));
        let mut names = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => names.push(path),
                }
            }
        }
        let below = |path: &PathBuf| {
            path.strip_prefix(&self.root).expect("below").to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = names.iter().map(below).collect();
        names.retain(|name| name.starts_with(&prefix));
        names.sort();
        let page = &names[from..names.len().min(from + 3)];
        let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name>");
        if from + 3 < names.len() {
            let next = from + 3;
            xml += &format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>"
            );
        }
        for name in page {
            let content = fs::read(self.root.join(name)).expect("a file");
            xml += &format!(
                "<Contents><Key>{name}</Key><LastModified>2026-11-26T00:00:00.000Z</LastModified>\
                 <ETag>\"{}\"</ETag><Size>{}</Size></Contents>",
                crate::support::digest(&content),
                content.len()
            );
        }
        (xml + "</ListBucketResult>").into_bytes()
    }
}
