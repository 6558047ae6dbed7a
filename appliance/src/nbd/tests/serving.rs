//! Our side as a server: qemu reads a disk through it, and no client can make it fall over.

use std::io::Cursor;
use std::os::unix::net::UnixListener;

use super::*;
use crate::block::BlockRead;

/// A disk in memory, of which one block cannot be read.
struct Memory {
    data: Vec<u8>,
    bad: Option<u64>,
}

impl BlockRead for Memory {
    fn len(&self) -> u64 {
        self.data.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if self.bad.is_some_and(|bad| (offset..offset + buf.len() as u64).contains(&bad)) {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        buf.copy_from_slice(&self.data[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn next_data(&self, from: u64) -> std::io::Result<Option<Extent>> {
        Ok((from < self.len()).then(|| Extent { offset: from, len: self.len() - from }))
    }
}

/// Has qemu copy the disk to a file.
fn copied(disk: Memory, dir: &Path) -> Result<Vec<u8>, NbdError> {
    let (socket, out) = (dir.join("s"), dir.join("out.raw"));
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(serve(&mut stream, &disk));
    });
    let from = format!("nbd+unix:///disk?socket={}", socket.display());
    let converted = qemu_img(&["convert", "-f", "raw", "-O", "raw", &from, out.to_str().unwrap()]);
    server.join().unwrap();
    converted.map(|_| fs::read(&out).unwrap())
}

#[test]
fn qemu_reads_a_disk_of_ours() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = noise((3 << 20) + 512, 4);
    let read = copied(Memory { data: data.clone(), bad: None }, dir.path()).unwrap();
    assert!(read == data);
}

#[test]
fn what_cannot_be_read_is_an_error_and_never_other_content() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = copied(Memory { data: noise(1 << 20, 5), bad: Some(700_000) }, dir.path()).unwrap_err();
    assert!(error.to_string().contains("Input/output error"), "{error}");
}

/// What a client sends, and what it gets back.
struct Client {
    sends: Cursor<Vec<u8>>,
    gets: Vec<u8>,
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.sends.read(buffer)
    }
}

impl Write for Client {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.gets.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The answer to what comes after a handshake, from the first reply to a request on.
fn answer(requests: &[u8]) -> (Result<(), NbdError>, Vec<u8>) {
    let mut sends = 3u32.to_be_bytes().to_vec();
    sends.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    sends.extend_from_slice(requests);
    let mut client = Client { sends: Cursor::new(sends), gets: Vec::new() };
    let end = serve(&mut client, &Memory { data: noise(100_000, 6), bad: None });
    // Greeting (18), then length and flags of the export.
    (end, client.gets[28..].to_vec())
}

fn request(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
    request.extend_from_slice(&0u16.to_be_bytes());
    request.extend_from_slice(&command.to_be_bytes());
    request.extend_from_slice(&7u64.to_be_bytes());
    request.extend_from_slice(&offset.to_be_bytes());
    request.extend_from_slice(&len.to_be_bytes());
    request
}

#[test]
fn requests_are_held_against_the_disk() {
    let errors = |requests: &[u8]| -> Vec<u32> {
        let (end, answer) = answer(requests);
        end.unwrap();
        answer.chunks(16).map(|reply| u32::from_be_bytes(reply[4..8].try_into().unwrap())).collect()
    };
    assert_eq!(errors(&request(0, 99_999, 2)), [22], "past the end");
    assert_eq!(errors(&request(0, u64::MAX, 2)), [22]);
    assert_eq!(errors(&request(0, 0, u32::MAX)), [22]);
    assert_eq!(errors(&request(3, 0, 0)), [0], "flush");
    assert_eq!(errors(&request(4, 0, 1)), [22], "discard");
    let mut writes = request(1, 0, 3);
    writes.extend_from_slice(b"abc");
    writes.extend_from_slice(&request(3, 0, 0));
    assert_eq!(errors(&writes), [1, 0], "a write changes nothing, and what follows is understood");
    assert_eq!(errors(&request(2, 0, 0)), [0; 0], "it leaves");
    let (end, read) = answer(&request(0, 5, 10));
    assert!(end.is_ok() && read[16..] == noise(100_000, 6)[5..15]);
}

proptest! {
    /// Whatever a client says, before or after the handshake: an end, and no more than what it asked for.
    #[test]
    fn no_client_makes_it_fall_over(mut said in proptest::collection::vec(any::<u8>(), 0..200), begin in any::<bool>()) {
        if begin {
            let mut whole = 3u32.to_be_bytes().to_vec();
            whole.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
            whole.append(&mut request(0, u64::from(said.len() as u32), 10));
            whole.append(&mut said);
            said = whole;
        }
        let mut client = Client { sends: Cursor::new(said), gets: Vec::new() };
        drop(serve(&mut client, &Memory { data: noise(100_000, 6), bad: None }));
        prop_assert!(client.gets.len() < 1000);
    }
}
