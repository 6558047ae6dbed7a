//! A server whose replies are scripted: whole, in pieces, false, none.

use super::*;

/// A valid handshake for an export of 1 MiB with context 1.
fn handshake(len: u64) -> Vec<u8> {
    let mut out = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let mut reply = |option: u32, kind: u32, data: &[u8]| {
        out.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
        out.extend(option.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
    };
    reply(8, 1, &[]);
    reply(10, 4, b"\0\0\0\x01base:allocation");
    reply(10, 1, &[]);
    let mut info = vec![0, 0];
    info.extend(len.to_be_bytes());
    // Flags: present, flush, write zeroes.
    info.extend(0x45u16.to_be_bytes());
    reply(7, 3, &info);
    reply(7, 1, &[]);
    out
}

fn client_of(script: Vec<u8>, disk_len: Option<u64>) -> Result<NbdClient, NbdError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // Everything is said at once and the direction is closed: the client meets an end, never silence.
    std::thread::spawn(move || {
        let _ = theirs.write_all(&script);
        let _ = theirs.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut theirs, &mut std::io::sink());
    });
    let timeout = Duration::from_secs(5);
    let options =
        ConnectOptions { disk_len, writable: true, timeout, ..ConnectOptions::new("/nonexistent", "disk") };
    NbdClient::with_stream(ours, options)
}

fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let mut out = 0x668e_33efu32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out
}

fn data_chunk(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend(data);
    chunk(flags, 1, cookie, &body)
}

fn hole_chunk(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend(len.to_be_bytes());
    chunk(flags, 2, cookie, &body)
}

fn read_with(replies: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut script = handshake(1 << 20);
    script.extend(replies.concat());
    let client = client_of(script, None).unwrap();
    let mut buf = vec![0xee; 1000];
    client.read_at(500, &mut buf).map(|()| buf).map_err(|error| error.to_string())
}

#[test]
fn a_failed_write_is_reported_and_final() {
    let mut script = handshake(1 << 20);
    script.extend(chunk(1, 0x8001, 1, b"\0\0\0\x1c\0\0"));
    let client = client_of(script, None).unwrap();
    client.write_at(0, &[2; 512]).unwrap();
    let error = client.flush().unwrap_err();
    assert!(error.to_string().contains("WRITE at 0"), "{error}");
    assert!(client.write_at(0, &[2; 512]).is_err());
    assert!(client.flush().is_err());
}

/// `cargo test -p vbr-appliance --lib nbd::tests::throughput -- --ignored --nocapture`
#[test]
fn replies_in_pieces_are_joined() {
    let pieces = [hole_chunk(0, 1, 700, 800), data_chunk(1, 1, 500, &[3; 200])];
    let mut expected = vec![3; 200];
    expected.resize(1000, 0);
    assert_eq!(read_with(&pieces), Ok(expected));
}

#[test]
fn false_replies_are_refused() {
    let cases: [(&str, Vec<Vec<u8>>); 9] = [
        ("ended early", vec![data_chunk(1, 1, 500, &[3; 200])]),
        ("nobody asked", vec![data_chunk(0, 1, 499, &[3; 200])]),
        ("nobody asked", vec![data_chunk(1, 1, 500, &[3; 1001])]),
        ("nobody asked", vec![hole_chunk(1, 1, u64::MAX, u32::MAX)]),
        ("nobody asked", vec![data_chunk(0, 1, 500, &[3; 600]), data_chunk(1, 1, 600, &[4; 400])]),
        ("not in flight", vec![data_chunk(1, 9, 500, &[3; 1000])]),
        ("simple reply", vec![b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01".to_vec()]),
        ("READ at 500", vec![chunk(1, 0x8001, 1, b"\0\0\0\x05\0\0")]),
        ("chunk of type 77", vec![chunk(1, 77, 1, &[0; 9])]),
    ];
    for (words, replies) in cases {
        let error = read_with(&replies).unwrap_err();
        assert!(error.contains(words), "{error} / {words}");
    }
}

#[test]
fn a_declared_length_is_held_against_the_export() {
    assert_eq!(client_of(handshake(1024), Some(513)).unwrap().len(), 513);
    assert!(client_of(handshake(1024), Some(512)).is_err());
    assert!(client_of(handshake(1024), Some(1025)).is_err());
    assert!(client_of(handshake(u64::MAX), None).is_err());
}

#[test]
fn a_silent_server_is_given_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&handshake(1 << 20)).unwrap();
    let timeout = Duration::from_millis(100);
    let options = ConnectOptions { timeout, ..ConnectOptions::new("/nonexistent", "disk") };
    let client = NbdClient::with_stream(ours, options).unwrap();
    let begun = Instant::now();
    assert!(client.read_at(0, &mut [0; 512]).is_err());
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut asked = [0; 28];
    theirs.set_read_timeout(Some(timeout)).unwrap();
    while theirs.read_exact(&mut asked[..1]).is_ok() {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_replies_never_panic(
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        kinds in proptest::collection::vec((0u16..9, 0u16..3, 0u64..4, 0u32..64, any::<u64>()), 0..6),
    ) {
        let mut script = handshake(1 << 20);
        for (kind, flags, cookie, len, offset) in kinds {
            let mut body = (offset % 2000).to_be_bytes().to_vec();
            body.resize(len as usize, 1);
            let kind = if kind > 6 { 0x8000 | kind } else { kind };
            script.extend(chunk(flags, kind, cookie, &body));
        }
        script.extend(garbage);
        let client = client_of(script, None).unwrap();
        let _ = client.write_at(0, &[1; 100]);
        let _ = client.next_data(0);
        let _ = client.read_at(0, &mut [0; 2000]);
        let _ = client.zero_at(0, 4096);
        let _ = client.flush();
    }

    #[test]
    fn a_damaged_handshake_never_panics(cut in 0usize..200, at in 0usize..200, byte in any::<u8>()) {
        let mut script = handshake(1 << 20);
        if let Some(place) = script.get_mut(at) {
            *place = byte;
        }
        script.truncate(cut);
        if let Ok(client) = client_of(script, None) {
            let _ = client.read_at(0, &mut [0; 100]);
        }
    }
}
