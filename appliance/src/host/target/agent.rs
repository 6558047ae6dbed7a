//! The guest agent of a VM that was started: whether it answers.
//!
//! One question a connection. Before the guest has come so far there is nobody behind the socket, and no answer comes.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::arguments::AGENT;
use crate::host::qemu::qmp::dial;

/// For an answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Of an answer, and of what was left in the channel before it.
const BYTES_MAX: usize = 16 * 1024;

/// True where the agent behind the socket in this directory answers now.
pub fn answers(directory: &Path) -> bool {
    // Whatever fails: nobody has answered.
    ask(directory).unwrap_or(false)
}

fn ask(directory: &Path) -> std::io::Result<bool> {
    let mut stream = dial(&directory.join(AGENT))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut number = [0; 4];
    getrandom::fill(&mut number).map_err(|error| std::io::Error::other(error.to_string()))?;
    let number = u32::from_ne_bytes(number);
    // What an agent has of an earlier, unfinished question ends with the first byte.
    let question = format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{number}}}}}\n");
    stream.write_all(&[&[0xff], question.as_bytes()].concat())?;
    let (end, expected) = (Instant::now() + ANSWER, format!("{{\"return\": {number}}}"));
    let mut heard = Vec::new();
    while heard.len() < BYTES_MAX {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(false);
        }
        heard.extend_from_slice(&piece[..count]);
        if heard.windows(expected.len()).any(|window| window == expected.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Behind the socket, somebody who says this to whatever is asked; `N` stands for the question's number.
    fn with(answer: &'static str) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(AGENT)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = vec![0; 200];
            let count = stream.read(&mut question).unwrap();
            let question = String::from_utf8_lossy(&question[1..count]).into_owned();
            let number: String = question.chars().filter(char::is_ascii_digit).collect();
            stream.write_all(answer.replace('N', &number).as_bytes()).unwrap();
            std::thread::sleep(ANSWER + Duration::from_millis(100));
        });
        let answered = answers(dir.path());
        server.join().unwrap();
        answered
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        assert!(with("\u{ff}{\"return\": N}\n"));
        assert!(with("{\"return\": {}}\n\u{ff}{\"return\": N}\n"), "after what was left of an earlier one");
        assert!(!with("{\"return\": 1N}\n"));
        assert!(!with("{\"error\": {}}\n"));
        assert!(!answers(Path::new("/nonexistent")));
    }
}
