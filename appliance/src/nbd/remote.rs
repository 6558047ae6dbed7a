//! Exports of NBD servers elsewhere, read through a `qemu-storage-daemon` of our own: protocol and TLS are qemu's.
//!
//! What is exported is bytes, never a format: nothing is probed. With `nbds://` the server proves who it is by a
//! certificate that the CA in the given directory signed (or by a shared key), or nothing is read. A connection that
//! breaks is not made again for a read (`reconnect-delay` 0): the read fails, for whoever answers later need not
//! show the same moment. Bounds: those of `process` and `export`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::export::{QsdExport, Serve};
use super::process::run_tool;
use super::uri::{NbdAddress, NbdUri};
use super::{NbdError, SILENCE_MAX};

/// Lists what a server has.
const QEMU_NBD: &str = "qemu-nbd";
/// For a list.
const LIST_TIME: Duration = Duration::from_secs(30);
/// In a directory of keys instead of certificates.
const KEYS: &str = "keys.psk";
const CREDENTIALS: &str = "tls0";

const _: () = assert!(LIST_TIME.as_secs() < SILENCE_MAX.as_secs());

/// What a server says of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteExport {
    /// Its name; the empty one where it has none.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Nobody can write to it through this server.
    pub read_only: bool,
}

/// The exports that a server lists. One that is not among them may be there all the same.
pub fn list_exports(uri: &NbdUri, tls_dir: Option<&Path>) -> Result<Vec<RemoteExport>, NbdError> {
    let mut args = vec!["--list".to_owned()];
    match &uri.address {
        NbdAddress::Tcp(host, port) => args.extend([format!("--bind={host}"), format!("--port={port}")]),
        NbdAddress::Unix(path) => args.push(format!("--socket={}", path.display())),
    }
    if let Some(credentials) = credentials(uri, tls_dir)? {
        args.extend([format!("--object={credentials}"), format!("--tls-creds={CREDENTIALS}")]);
        args.extend(uri.tls_hostname.iter().map(|name| format!("--tls-hostname={name}")));
    }
    Ok(parse(&run_tool(QEMU_NBD, &args, LIST_TIME)?))
}

impl QsdExport {
    /// Opens an export for reading. `bytes`: its exact length where that is known; otherwise qemu's word, which is
    /// rounded up to a sector.
    pub fn open_remote(
        uri: &NbdUri,
        tls_dir: Option<&Path>,
        bytes: Option<u64>,
        runtime_dir: &Path,
    ) -> Result<Self, NbdError> {
        let mut node = json!({ "driver": "nbd", "node-name": "disk0", "read-only": true, "auto-read-only": false,
            "export": uri.export, "reconnect-delay": 0, "server": match &uri.address {
                NbdAddress::Tcp(host, port) => {
                    json!({ "type": "inet", "host": host, "port": port.to_string(), "keep-alive": true })
                }
                NbdAddress::Unix(path) => json!({ "type": "unix", "path": path }),
            } });
        let mut args = Vec::new();
        if let Some(credentials) = credentials(uri, tls_dir)? {
            args.extend(["--object".to_owned(), credentials.to_string()]);
            node["tls-creds"] = json!(CREDENTIALS);
            if let Some(name) = &uri.tls_hostname {
                node["tls-hostname"] = json!(name);
            }
        }
        args.extend(["--blockdev".to_owned(), node.to_string()]);
        Self::serve(Serve { image: uri.to_string(), args, writable: false, disk_len: bytes }, runtime_dir)
    }
}

/// What qemu needs for TLS; none where the connection is plain, and an error where it must not be and cannot but be.
fn credentials(uri: &NbdUri, tls_dir: Option<&Path>) -> Result<Option<Value>, NbdError> {
    let Some(dir) = tls_dir.filter(|_| uri.tls) else {
        if uri.tls {
            let why = "nbds:// needs a directory with certificates or keys";
            return Err(NbdError::Path { path: uri.to_string().into(), why });
        }
        return Ok(None);
    };
    let Some(text) = dir.to_str() else {
        return Err(NbdError::Path { path: dir.into(), why: "qemu takes only paths in UTF-8" });
    };
    let common = json!({ "id": CREDENTIALS, "dir": text, "endpoint": "client" });
    let mut object = common;
    if dir.join(KEYS).is_file() {
        object["qom-type"] = json!("tls-creds-psk");
        if let Some(user) = &uri.user {
            object["username"] = json!(user);
        }
    } else {
        object["qom-type"] = json!("tls-creds-x509");
        object["verify-peer"] = json!(true);
    }
    Ok(Some(object))
}

/// What `qemu-nbd --list` prints: an indented block for each export.
fn parse(text: &str) -> Vec<RemoteExport> {
    let mut found: Vec<RemoteExport> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(" export: '").and_then(|rest| rest.strip_suffix('\'')) {
            found.push(RemoteExport { name: name.into(), bytes: 0, read_only: false });
        }
        let Some(last) = found.last_mut() else { continue };
        if let Some(bytes) = line.strip_prefix("  size:").and_then(|rest| rest.trim().parse().ok()) {
            last.bytes = bytes;
        }
        if let Some(flags) = line.strip_prefix("  flags: 0x") {
            let digits = flags.split(' ').next().unwrap_or_default();
            last.read_only = u32::from_str_radix(digits, 16).is_ok_and(|flags| flags & 2 != 0);
        }
    }
    // Without a size it was not described: nothing is known of it.
    found.retain(|export| export.bytes > 0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let text = "exports available: 3\n export: ''\n  description: a disk\n  size:  1048576\n  \
                    flags: 0x48f ( readonly flush fua )\n  min block: 1\n export: 'web/a'\n  size:  4096\n  \
                    flags: 0x48d ( flush fua )\n  available meta contexts: 1\n   base:allocation\n export: 'no'\n";
        let export = |name: &str, bytes, read_only| RemoteExport { name: name.into(), bytes, read_only };
        assert_eq!(parse(text), [export("", 1 << 20, true), export("web/a", 4096, false)]);
        assert_eq!(parse("nonsense\n  size: 7\n"), []);
    }

    #[test]
    fn tls_is_never_left_out() {
        let uri: NbdUri = "nbds://gate/web".parse().unwrap();
        let said = list_exports(&uri, None).unwrap_err().to_string();
        assert!(said.contains("needs a directory"), "{said}");
        let dir = tempfile::tempdir().unwrap();
        let said = QsdExport::open_remote(&uri, None, None, dir.path()).err().unwrap().to_string();
        assert!(said.contains("needs a directory"), "{said}");
        let x509 = credentials(&uri, Some(dir.path())).unwrap().unwrap();
        assert_eq!((&x509["qom-type"], &x509["verify-peer"]), (&json!("tls-creds-x509"), &json!(true)));
        std::fs::write(dir.path().join(KEYS), "alice:00\n").unwrap();
        let uri: NbdUri = "nbds://alice@gate/web".parse().unwrap();
        let psk = credentials(&uri, Some(dir.path())).unwrap().unwrap();
        assert_eq!((&psk["qom-type"], &psk["username"]), (&json!("tls-creds-psk"), &json!("alice")));
        let plain: NbdUri = "nbd://gate/web".parse().unwrap();
        assert_eq!(credentials(&plain, None).unwrap(), None);
    }
}
