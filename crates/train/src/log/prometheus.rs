//! Serves metrics to Prometheus at `http://ADDR:PORT/metrics` while a run trains.
//!
//! A small server of its own: general-purpose HTTP crates set no deadline for a whole request, and
//! a slow client must not hold a thread.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::log::{Observer, RunInfo, Status};
use crate::metrics::Line;
use crate::record::since_1970;

/// Number of clients served at a time; others wait.
const THREADS: usize = 4;

/// How long a client may take to send its request, and to read the response.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum size of a request in bytes.
const MAX_REQUEST: usize = 8 << 10;

/// The newest metrics by name.
type Gauges = BTreeMap<String, Gauge>;

struct Gauge {
    help: String,
    labels: Vec<(&'static str, String)>,
    value: f64,
}

/// A metrics server. Its threads serve until the process ends; no client can block or end training.
pub struct Server {
    gauges: Arc<Mutex<Gauges>>,
    address: SocketAddr,
}

impl Server {
    /// Listens at `address`. Port 0 picks a free one.
    ///
    /// # Errors
    /// If the port is in use, or the address is not one of this machine.
    pub fn listen(address: SocketAddr) -> Result<Self> {
        let context = || match address.port() {
            0 => format!("--prometheus {address}"),
            _ => format!("--prometheus {address} (port 0 picks a free one)"),
        };
        let listener = TcpListener::bind(address).with_context(context)?;
        let address = listener.local_addr().with_context(context)?;
        let gauges = Arc::<Mutex<Gauges>>::default();
        for _ in 0..THREADS {
            let (listener, gauges) = (listener.try_clone().with_context(context)?, gauges.clone());
            let serve = move || {
                loop {
                    match listener.accept() {
                        Ok((client, _)) => drop(respond(client, &gauges)),
                        // Too many open files, for example, which passes.
                        Err(_) => thread::sleep(Duration::from_millis(100)),
                    }
                }
            };
            thread::Builder::new().name("prometheus".into()).spawn(serve).with_context(context)?;
        }
        Ok(Self { gauges, address })
    }

    /// Returns the address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets a gauge.
    pub fn set(&self, name: &str, help: &str, value: f64) {
        self.set_labelled(name, help, Vec::new(), value);
    }

    /// Publishes the metrics of a line.
    fn publish(&self, line: &Line) {
        for (tag, value) in line.scalars() {
            self.set(&tag, &format!("{tag} of metrics.jsonl."), value);
        }
    }

    /// Sets a gauge with labels.
    pub fn set_labelled(
        &self,
        name: &str,
        help: &str,
        labels: Vec<(&'static str, String)>,
        value: f64,
    ) {
        let gauge = Gauge { help: help.to_owned(), labels, value };
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.insert(metric_name(name), gauge);
    }
}

impl Observer for Server {
    fn start(&mut self, run: &RunInfo) {
        let process = run.process;
        let labels = vec![
            ("version", process.data2vec.clone()),
            ("commit", process.commit.clone().unwrap_or_default()),
            ("libtorch", process.libtorch.clone()),
        ];
        self.set_labelled("build_info", "Version of data2vec.", labels, 1.0);
        let labels = vec![
            ("dir", run.dir.display().to_string()),
            ("device", process.device.clone()),
            ("unit", run.unit.to_owned()),
        ];
        self.set_labelled("run_info", "The run and the unit of its data.", labels, 1.0);
        self.set("steps", "Steps of the whole run.", run.steps as f64);
        self.step(run.step);
        run.lines.iter().for_each(|line| self.publish(line));
    }

    fn step(&mut self, step: u64) {
        self.set("step", "Completed steps.", step as f64);
    }

    fn line(&mut self, line: &Line, status: &Status) -> Result<()> {
        self.publish(line);
        if let Some(memory) = status.memory {
            self.set("memory_bytes", "Memory in use, of the GPU or the process.", memory);
        }
        Ok(())
    }

    fn saved(&mut self) {
        let help = "Time of the last checkpoint, in seconds since 1970.";
        let now = since_1970().as_secs_f64();
        self.set("last_checkpoint_timestamp_seconds", help, now);
    }
}

/// Returns a valid Prometheus name for a metric.
fn metric_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("data2vec_{}", name.chars().map(allowed).collect::<String>())
}

/// Formats gauges in the Prometheus text format, version 0.0.4.
fn text(gauges: &Gauges) -> String {
    let escaped = |text: &str| text.replace('\\', r"\\").replace('\n', r"\n");
    let mut out = String::new();
    for (name, Gauge { help, labels, value }) in gauges {
        out += &format!("# HELP {name} {}\n# TYPE {name} gauge\n{name}", escaped(help));
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value).replace('"', "\\\"")))
            .collect();
        if !labels.is_empty() {
            out += &format!("{{{}}}", labels.join(","));
        }
        let value = match *value {
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            value => value.to_string(), // `NaN` as well
        };
        out += &format!(" {value}\n");
    }
    out
}

/// Responds to one request. Errors mean that the client is gone or too slow.
fn respond(mut client: TcpStream, gauges: &Mutex<Gauges>) -> std::io::Result<()> {
    client.set_write_timeout(Some(TIMEOUT))?;
    let (status, body) = match read(&mut client)? {
        None => ("431 Request Header Fields Too Large", "request too large\n".to_owned()),
        Some(request) => match path(&request) {
            None => ("400 Bad Request", "invalid HTTP request\n".to_owned()),
            Some(("GET", "/metrics")) => {
                let gauges = gauges.lock().unwrap_or_else(PoisonError::into_inner);
                ("200 OK", text(&gauges))
            }
            Some((_, "/metrics")) => ("405 Method Not Allowed", "only GET is allowed\n".to_owned()),
            Some(_) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        },
    };
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes())
}

/// Reads a request up to the empty line. Returns `None` if it is too large.
fn read(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + TIMEOUT;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST {
            return Ok(None);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut buffer)? {
            0 => break,
            count => request.extend(&buffer[..count]),
        }
    }
    Ok(Some(request))
}

/// Returns method and path of a request, without the query.
fn path(request: &[u8]) -> Option<(&str, &str)> {
    let line = request.split(|&byte| byte == b'\n').next()?;
    let mut words = str::from_utf8(line).ok()?.trim_end().split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_http = version.starts_with("HTTP/1.") && words.next().is_none();
    is_http.then(|| (method, target.split('?').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_follows_prometheus_format() {
        let server = Server::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
        server.set("train/loss", "loss, a \\ and\ntwo lines", 0.5);
        server.set("a", "b", f64::NAN);
        server.set("b", "c", f64::NEG_INFINITY);
        server.set("b", "c", f64::INFINITY);
        let labels = vec![("path", "a \"b\" \\ c\nd".to_owned()), ("unit", "s".to_owned())];
        server.set_labelled("run_info", "run", labels, 1.0);
        let expected = r#"# HELP data2vec_a b
# TYPE data2vec_a gauge
data2vec_a NaN
# HELP data2vec_b c
# TYPE data2vec_b gauge
data2vec_b +Inf
# HELP data2vec_run_info run
# TYPE data2vec_run_info gauge
data2vec_run_info{path="a \"b\" \\ c\nd",unit="s"} 1
# HELP data2vec_train_loss loss, a \\ and\ntwo lines
# TYPE data2vec_train_loss gauge
data2vec_train_loss 0.5
"#;
        assert_eq!(text(&server.gauges.lock().expect("no panic")), expected);
    }

    #[test]
    fn rejects_invalid_requests() {
        let of = |text: &'static str| path(text.as_bytes());
        assert_eq!(of("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Some(("GET", "/metrics")));
        assert_eq!(of("GET /metrics?x=/y HTTP/1.0\r\n\r\n"), Some(("GET", "/metrics")));
        assert_eq!(of("POST / HTTP/1.1\r\n\r\n"), Some(("POST", "/")));
        for bad in ["", "\r\n\r\n", "GET /metrics\r\n\r\n", "GET  /metrics HTTP/1.1\r\n\r\n"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(of("GET /metrics HTTP/2\r\n\r\n"), None);
        assert_eq!(path(b"\xff\xfe GET / HTTP/1.1\r\n\r\n"), None);
    }
}
