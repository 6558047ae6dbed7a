//! Definitions, and a libvirt that is not there.

use vbr_api::Host;

use super::*;
use crate::error::Problem;

fn host(directories: &[&str], uris: &[&str]) -> Host {
    let all = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Host {
        name: "kvm1".into(),
        driver: "libvirt".into(),
        directories: all(directories),
        uris: all(uris),
        ..Host::default()
    }
}

#[test]
fn definitions_are_of_this_machine() {
    check(&host(&["/d"], &[])).unwrap();
    check(&host(&["/d"], &["qemu:///system", "qemu+unix:///system?socket=/run/x"])).unwrap();
    for (directories, uris, word) in [
        (vec![], vec![], "directory"),
        (vec!["/a", "/b"], vec![], "directory"),
        (vec!["/a"], vec!["qemu+ssh://node2/system"], "this machine"),
        (vec!["/a"], vec!["qemu+tls://node2/system"], "this machine"),
        (vec!["/a"], vec!["qemu://node2/system"], "this machine"),
        (vec!["/a"], vec!["xen:///system"], "this machine"),
        (vec!["/a"], vec!["--help"], "this machine"),
    ] {
        let said = check(&host(&directories, &uris)).unwrap_err().to_string();
        assert!(said.contains(word), "{uris:?}: {said}");
    }
}

#[test]
fn a_libvirt_that_is_not_there_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::host::CloneConfig {
        directories: Vec::new(),
        state_dir: dir.path().join("snapshots"),
        floor_bytes: 0,
    };
    let uri = format!("qemu+unix:///system?socket={}/none", dir.path().display());
    let host = host(&[&dir.path().display().to_string()], &[&uri]);
    let clones = Arc::new(CloneStore::new(config));
    let source = LibvirtHost::new(host, clones, dir.path().join("run"));
    let problem = Problem::from(source.resolve("web").unwrap_err());
    assert!(problem.code == "hypervisor" && problem.retry, "{problem:?}");
    assert!(!problem.next_step.is_empty() && problem.what.contains("kvm1/web"), "{problem:?}");
    assert!(source.list().unwrap().is_empty());
}
