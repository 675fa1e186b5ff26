#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Behavior of the test server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    Normal,
    /// Closes the connection after this many bytes of each body.
    TruncateAfter(usize),
    /// Always sends the complete file.
    IgnoreRanges,
    /// Responds with 404.
    NotFound,
    /// Responds with 503 to the first two requests.
    UnavailableTwice,
}

pub struct Server {
    pub url: String,
    pub requests: Arc<AtomicUsize>,
}

/// Serves `content` from a loopback port until the test ends.
pub fn serve(content: &'static [u8], behavior: Behavior) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut range = None;
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap().to_lowercase();
                if let Some(value) = line.strip_prefix("range: bytes=") {
                    let (start, end) = value.split_once('-').unwrap();
                    let end = end
                        .parse::<usize>()
                        .map_or(content.len(), |end| (end + 1).min(content.len()));
                    range = Some((start.parse::<usize>().unwrap(), end));
                }
                if line.is_empty() {
                    break;
                }
            }
            let request = count.fetch_add(1, Ordering::SeqCst);
            let response = match (behavior, range) {
                (Behavior::NotFound, _) => {
                    (String::from("404 Not Found\r\nContent-Length: 0"), &content[..0])
                }
                (Behavior::UnavailableTwice, _) if request < 2 => {
                    (String::from("503 Busy\r\nContent-Length: 0"), &content[..0])
                }
                (Behavior::IgnoreRanges, _) | (_, None) => {
                    (format!("200 OK\r\nContent-Length: {}", content.len()), content)
                }
                (_, Some((start, end))) if start >= end => (
                    format!(
                        "416 No\r\nContent-Range: bytes */{}\r\nContent-Length: 0",
                        content.len()
                    ),
                    &content[..0],
                ),
                (_, Some((start, end))) => {
                    let range = format!("bytes {start}-{}/{}", end - 1, content.len());
                    let head = format!(
                        "206 Part\r\nContent-Range: {range}\r\nContent-Length: {}",
                        end - start
                    );
                    (head, &content[start..end])
                }
            };
            let body = match behavior {
                Behavior::TruncateAfter(limit) => &response.1[..response.1.len().min(limit)],
                _ => response.1,
            };
            let _ = write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\n\r\n", response.0);
            let _ = stream.write_all(body);
        }
    });
    Server { url, requests }
}

fn content() -> &'static [u8] {
    (0..100_000_u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>().leak()
}

fn download(server: &Server, to: &Path, range: Option<Range<u64>>) -> Result<()> {
    Client::without_backoff().download(&server.url, to, range, &mut |_, _| ())
}

#[test]
fn downloads_a_complete_file() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Behavior::Normal);
    let mut last = (0, None);
    Client::without_backoff()
        .download(&server.url, &to, None, &mut |have, total| last = (have, total))
        .unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(last, (content.len() as u64, Some(content.len() as u64)));
}

#[test]
fn resumes_a_truncated_download() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Behavior::TruncateAfter(30_000));
    download(&server, &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(server.requests.load(Ordering::SeqCst), 4);
}

#[test]
fn resumes_the_file_of_an_earlier_run() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    for (left, range) in
        [(70_000, None), (1_000, Some(5_000..9_000)), (100_000, None), (4_000, Some(5_000..9_000))]
    {
        let expected = range.clone().map_or(content, |range: Range<u64>| {
            &content[range.start as usize..range.end as usize]
        });
        fs::write(&to, &expected[..left]).unwrap();
        download(&serve(content, Behavior::Normal), &to, range).unwrap();
        assert_eq!(fs::read(&to).unwrap(), expected);
    }
    // Longer than the file on the server: cannot be a part of it.
    fs::write(&to, vec![1; 200_000]).unwrap();
    download(&serve(content, Behavior::Normal), &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
}

#[test]
fn restarts_without_range_support() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Behavior::IgnoreRanges);
    fs::write(&to, &content[..70_000]).unwrap();
    download(&server, &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert!(
        download(&server, &dir.path().join("part"), Some(10..20))
            .unwrap_err()
            .is::<RangesUnsupported>()
    );
    assert!(Client::without_backoff().size(&server.url).unwrap_err().is::<RangesUnsupported>());
    assert!(
        Client::without_backoff().read(&server.url, 10..20).unwrap_err().is::<RangesUnsupported>()
    );
}

#[test]
fn reads_sizes_and_ranges() {
    let content = content();
    let server = serve(content, Behavior::Normal);
    assert_eq!(Client::without_backoff().size(&server.url).unwrap(), content.len() as u64);
    assert_eq!(
        Client::without_backoff().read(&server.url, 99_990..100_000).unwrap(),
        &content[99_990..]
    );
}

#[test]
fn does_not_retry_after_404() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(b"", Behavior::NotFound);
    let error = format!("{:#}", download(&server, &dir.path().join("file"), None).unwrap_err());
    assert!(error.contains("404") && error.contains(&server.url), "{error}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn retries_after_503() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let server = serve(content, Behavior::UnavailableTwice);
    download(&server, &dir.path().join("file"), None).unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
}

#[test]
fn fails_after_repeated_empty_responses() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let server = serve(content, Behavior::TruncateAfter(0));
    let error = download(&server, &dir.path().join("file"), None).unwrap_err();
    assert!(error.to_string().contains("run the command again"), "{error:#}");
    assert_eq!(server.requests.load(Ordering::SeqCst), ATTEMPTS as usize);
}
