//! A vbrd that says what a test tells it to: HTTP/1.1 on a unix socket, by hand on std.
//!
//! One request a connection, as vbrctl does it. Not a model of vbrd: no state beyond what a test's handler keeps.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET /v1/jobs`
    pub line: String,
    pub body: String,
    /// The peer that it is for.
    pub site: Option<String>,
}

/// What to send back.
pub enum Answer {
    Json(u16, String),
    /// A chunked binary stream.
    Stream(Vec<Vec<u8>>),
    /// A chunked binary stream that breaks off without its last chunk.
    Broken(Vec<Vec<u8>>),
    /// Close without a word.
    HangUp,
    /// Close, and stop listening (until [`Fake::listen`] is called again).
    Die,
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

pub struct Fake {
    pub dir: tempfile::TempDir,
    pub seen: Arc<Mutex<Vec<Request>>>,
    handler: Handler,
}

impl Fake {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Fake {
        let fake =
            Fake { dir: tempfile::tempdir().unwrap(), seen: Arc::default(), handler: Arc::new(handler) };
        fake.listen();
        fake
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vbrd.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn listen(&self) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (handler, seen) = (self.handler.clone(), self.seen.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if !serve(stream, &handler, &seen) {
                    return;
                }
            }
        });
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbrctl"));
        command.arg("--socket").arg(self.socket()).args(words).env_remove("VBR_SOCKET");
        command.stdin(std::process::Stdio::null()).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, words: &[&str]) -> Run {
        Run::of(self.command(words).output().unwrap())
    }
}

/// How a vbrctl ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(output: Output) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// False where the listener is to stop.
fn serve(mut stream: UnixStream, handler: &Handler, seen: &Mutex<Vec<Request>>) -> bool {
    let Some(request) = read(&stream) else { return true };
    seen.lock().unwrap().push(request.clone());
    match handler(&request) {
        Answer::Json(status, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
        Answer::Stream(pieces) => {
            chunks(&mut stream, &pieces);
            let _ = stream.write_all(b"0\r\n\r\n");
        }
        Answer::Broken(pieces) => chunks(&mut stream, &pieces),
        Answer::HangUp => {}
        Answer::Die => return false,
    }
    true
}

fn chunks(stream: &mut UnixStream, pieces: &[Vec<u8>]) {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.vbr.extents\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes());
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let _ = stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes());
        let _ = stream.write_all(piece);
        let _ = stream.write_all(b"\r\n");
    }
}

fn read(stream: &UnixStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|length| *length > 0)?;
    let (mut length, mut site) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if let Some(value) = header.strip_prefix("vbr-site:") {
            site = Some(value.trim().to_string());
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let line = first.trim().trim_end_matches(" HTTP/1.1").to_string();
    Some(Request { line, body: String::from_utf8(body).ok()?, site })
}

/// An error as vbrd sends it.
pub fn error(status: u16, code: &str) -> Answer {
    let body = format!(
        r#"{{"schema":1,"error":{{"code":"{code}","what":"It failed","why":"the reason","next_step":"the step","retry":false}}}}"#
    );
    Answer::Json(status, body)
}

pub fn ok(body: impl Into<String>) -> Answer {
    Answer::Json(200, body.into())
}

/// Names in a directory except the socket.
pub fn left_in(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "vbrd.sock").collect();
    names.sort();
    names
}
