#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// How a server misbehaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Good,
    /// Ends each answer after so many bytes, whatever it announced.
    CutAfter(usize),
    /// Sends the whole file whatever it was asked for.
    NoRanges,
    /// Says that there is nothing.
    NotFound,
    /// Fails the first two times.
    BusyTwice,
}

pub struct Server {
    pub url: String,
    pub requests: Arc<AtomicUsize>,
}

/// Serves `content` from a loopback port until the test ends.
pub fn serve(content: &'static [u8], manner: Manner) -> Server {
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
            let number = count.fetch_add(1, Ordering::SeqCst);
            let answer = match (manner, range) {
                (Manner::NotFound, _) => {
                    (String::from("404 Not Found\r\nContent-Length: 0"), &content[..0])
                }
                (Manner::BusyTwice, _) if number < 2 => {
                    (String::from("503 Busy\r\nContent-Length: 0"), &content[..0])
                }
                (Manner::NoRanges, _) | (_, None) => {
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
            let body = match manner {
                Manner::CutAfter(most) => &answer.1[..answer.1.len().min(most)],
                _ => answer.1,
            };
            let _ = write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\n\r\n", answer.0);
            let _ = stream.write_all(body);
        }
    });
    Server { url, requests }
}

fn content() -> &'static [u8] {
    (0..100_000_u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>().leak()
}

fn download(server: &Server, to: &Path, range: Option<Range<u64>>) -> Result<()> {
    Client::impatient().download(&server.url, to, range, &mut |_, _| ())
}

#[test]
fn a_whole_file_arrives() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Manner::Good);
    let mut last = (0, None);
    Client::impatient()
        .download(&server.url, &to, None, &mut |have, total| last = (have, total))
        .unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(last, (content.len() as u64, Some(content.len() as u64)));
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Manner::CutAfter(30_000));
    download(&server, &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(server.requests.load(Ordering::SeqCst), 4);
}

#[test]
fn what_an_earlier_run_left_is_used() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    for (left, range) in
        [(70_000, None), (1_000, Some(5_000..9_000)), (100_000, None), (4_000, Some(5_000..9_000))]
    {
        let wanted = range.clone().map_or(content, |range: Range<u64>| {
            &content[range.start as usize..range.end as usize]
        });
        fs::write(&to, &wanted[..left]).unwrap();
        download(&serve(content, Manner::Good), &to, range).unwrap();
        assert_eq!(fs::read(&to).unwrap(), wanted);
    }
    // Longer than what is to come: it cannot be a part of it.
    fs::write(&to, vec![1; 200_000]).unwrap();
    download(&serve(content, Manner::Good), &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
}

#[test]
fn a_server_without_ranges_starts_again_or_says_so() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let to = dir.path().join("file");
    let server = serve(content, Manner::NoRanges);
    fs::write(&to, &content[..70_000]).unwrap();
    download(&server, &to, None).unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    assert!(
        download(&server, &dir.path().join("part"), Some(10..20)).unwrap_err().is::<NoRanges>()
    );
    assert!(Client::impatient().size(&server.url).unwrap_err().is::<NoRanges>());
    assert!(Client::impatient().read(&server.url, 10..20).unwrap_err().is::<NoRanges>());
}

#[test]
fn sizes_and_small_parts_are_read() {
    let content = content();
    let server = serve(content, Manner::Good);
    assert_eq!(Client::impatient().size(&server.url).unwrap(), content.len() as u64);
    assert_eq!(Client::impatient().read(&server.url, 99_990..100_000).unwrap(), &content[99_990..]);
}

#[test]
fn a_missing_file_is_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(b"", Manner::NotFound);
    let error = format!("{:#}", download(&server, &dir.path().join("file"), None).unwrap_err());
    assert!(error.contains("404") && error.contains(&server.url), "{error}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn a_busy_server_is_asked_again() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let server = serve(content, Manner::BusyTwice);
    download(&server, &dir.path().join("file"), None).unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let (content, dir) = (content(), tempfile::tempdir().unwrap());
    let server = serve(content, Manner::CutAfter(0));
    let error = download(&server, &dir.path().join("file"), None).unwrap_err();
    assert!(error.to_string().contains("run the command again"), "{error:#}");
    assert_eq!(server.requests.load(Ordering::SeqCst), ATTEMPTS as usize);
}
