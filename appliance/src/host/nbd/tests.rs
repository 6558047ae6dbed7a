//! Definitions, and servers that are not there.

use vbr_api::{DiskFormat, DiskSpec, Host};

use super::*;
use crate::error::Problem;

fn host(uris: &[&str], tls_dir: Option<&str>) -> Host {
    let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
    Host {
        name: "store".into(),
        driver: "nbd".into(),
        uris,
        tls_dir: tls_dir.map(Into::into),
        ..Host::default()
    }
}

#[test]
fn what_would_go_plain_or_nowhere_is_refused() {
    for (uris, tls_dir, word) in [
        (vec![], None, "URIs"),
        (vec!["/srv/web.img"], None, "scheme"),
        (vec!["nbd://a", "web=nbd://b:x/"], None, "port"),
        (vec!["nbds://a"], None, "TLS"),
        (vec!["nbds://a", "nbd://b"], Some("/etc/tls"), "unencrypted"),
    ] {
        let said = check(&host(&uris, tls_dir)).unwrap_err().to_string();
        assert!(said.contains(word), "{uris:?}: {said}");
    }
    check(&host(&["nbd://a", "web=nbd+unix:///?socket=/x"], None)).unwrap();
    check(&host(&["nbds://a/b"], Some("/etc/tls"))).unwrap();
}

#[test]
fn a_server_that_is_not_there_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("nbd+unix:///?socket={}/none.sock", dir.path().display());
    let (named, bare) = (format!("web={uri}"), format!("{uri}&"));
    let source = NbdHost::new(host(&[&named, &bare], None), dir.path().into());
    let spec = DiskSpec { path: uri, format: DiskFormat::Raw };
    let found = source.resolve("web").unwrap();
    assert!(found.len() == 1 && found[0] == spec, "no server is asked for what is named: {found:?}");
    assert!(matches!(source.resolve("shop"), Err(HostError::Server { .. })));
    let vms = source.list().unwrap();
    assert_eq!((vms.len(), vms[0].virtual_bytes), (1, None));
    let request = |disk: DiskSpec| SnapshotRequest {
        job: "web".into(),
        session: "s1".into(),
        vm: Some("web".into()),
        disks: vec![disk],
    };
    let problem = Problem::from(source.snapshot(&request(spec.clone())).err().unwrap());
    assert!(
        problem.code == "nbd_server" && problem.retry && problem.next_step.contains("runs"),
        "{problem:?}"
    );
    let odd = DiskSpec { path: "/srv/web.img".into(), ..spec.clone() };
    assert_eq!(Problem::from(source.snapshot(&request(odd)).err().unwrap()).code, "invalid");
    assert!(source.reopen(&request(spec), "nbd.1.s1").unwrap().is_none());
}
