//! A small file server with byte ranges, for bita: HTTP/1.1, GET alone, connections kept open.
//!
//! Runs as a program of its own inside the source's namespace (`vbr-bench --serve DIR`), so that its
//! CPU time counts there. Bounds: a thread a connection, 8 KiB of request.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const REQUEST_BYTES_MAX: u64 = 8 * 1024;

/// Serves the files of one directory until killed.
pub fn serve(directory: &Path, address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    for stream in listener.incoming() {
        let (stream, directory) = (stream?, directory.to_owned());
        std::thread::spawn(move || {
            // A client that goes away is not worth a word.
            let _ = talk(&stream, &directory);
        });
    }
    Ok(())
}

fn talk(stream: &TcpStream, directory: &Path) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    while let Some(request) = Request::read(&mut input)? {
        answer(stream, directory, &request)?;
    }
    Ok(())
}

/// What matters of a request.
#[derive(Debug, PartialEq)]
struct Request {
    name: String,
    /// First and last byte.
    range: Option<(u64, u64)>,
}

impl Request {
    /// None at the end of the connection.
    fn read(input: &mut impl BufRead) -> Result<Option<Self>> {
        let mut input = input.take(REQUEST_BYTES_MAX);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some("GET"), Some(path)) = (words.next(), words.next()) else { bail!("not a GET: {line}") };
        let mut request = Self { name: path.trim_start_matches('/').to_owned(), range: None };
        loop {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                bail!("the request ends in its headers");
            }
            if line.trim().is_empty() {
                return Ok(Some(request));
            }
            if let Some((header, value)) = line.split_once(':')
                && header.eq_ignore_ascii_case("range")
            {
                request.range = range(value.trim());
            }
        }
    }
}

/// `bytes=FIRST-LAST`; the other forms of a range are not asked for.
fn range(value: &str) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn answer(mut stream: &TcpStream, directory: &Path, request: &Request) -> Result<()> {
    let name = PathBuf::from(&request.name);
    let plain = name.components().count() == 1 && name.file_name().is_some();
    let Some(mut file) = plain.then(|| File::open(directory.join(name)).ok()).flatten() else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(());
    };
    let len = file.metadata()?.len();
    let (status, first, last) = match request.range {
        Some((first, last)) if first < len => ("206 Partial Content", first, last.min(len - 1)),
        _ => ("200 OK", 0, len.saturating_sub(1)),
    };
    let bytes = (last + 1).saturating_sub(first).min(len);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\nContent-Range: bytes {first}-{last}/{len}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    file.seek(SeekFrom::Start(first))?;
    std::io::copy(&mut file.take(bytes), &mut stream)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serves_ranges_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"0123456789").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (home, requests) = (dir.path().to_owned(), 3);
        let server = std::thread::spawn(move || talk(&listener.accept().unwrap().0, &home));
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET /a HTTP/1.1\r\nRange: bytes=2-4\r\n\r\n").unwrap();
        client.write_all(b"GET /../a HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said.matches("HTTP/1.1").count(), requests);
        assert!(said.contains("bytes 2-4/10\r\n\r\n234HTTP"), "{said}");
        assert!(said.contains("404") && said.ends_with("0123456789"));
        server.join().unwrap().unwrap();
    }
}
