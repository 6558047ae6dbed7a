//! Which exports make which VM. Pure.
//!
//! `NAME=URI` says it: one disk of the VM of that name, in the order of the definition. A URI alone stands for a server,
//! or for one export of it: the export `web` is the VM `web`, and `web/a` and `web/b` are two disks of one, as images in a
//! directory are. The unnamed export is the VM `default`.

use std::collections::BTreeMap;

use crate::limits::DISKS_MAX;
use crate::nbd::{NbdUri, RemoteExport};

/// The VM of an export without a name.
const UNNAMED: &str = "default";

/// One word of a host's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A disk of this VM.
    Named(String, NbdUri),
    /// All that the server lists, or the one export that it names.
    Server(NbdUri),
}

impl Entry {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, uri)) if vbr_api::name_is_valid(name) => Ok(Self::Named(name.into(), uri.parse()?)),
            _ => Ok(Self::Server(text.parse()?)),
        }
    }

    pub fn uri(&self) -> &NbdUri {
        match self {
            Self::Named(_, uri) | Self::Server(uri) => uri,
        }
    }
}

/// A disk, and its length where the server told.
pub(super) type Found = (NbdUri, Option<u64>);

/// The VMs by name, each with its disks. `listed`: what the server of each entry lists.
pub(super) fn vms(entries: &[(Entry, Vec<RemoteExport>)]) -> BTreeMap<String, Vec<Found>> {
    let mut vms: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    let mut add = |name: &str, uri: NbdUri, bytes| {
        let disks = vms.entry(name.into()).or_default();
        if disks.len() < DISKS_MAX && !disks.iter().any(|(other, _)| *other == uri) {
            disks.push((uri, bytes));
        }
    };
    for (entry, exports) in entries {
        let length =
            |name: &str| exports.iter().find(|export| export.name == name).map(|export| export.bytes);
        match entry {
            Entry::Named(name, uri) => add(name, uri.clone(), length(&uri.export)),
            Entry::Server(uri) => {
                let mut names: Vec<&str> = exports.iter().map(|export| export.name.as_str()).collect();
                if !uri.export.is_empty() {
                    names = vec![&uri.export];
                }
                names.sort_unstable();
                for export in names {
                    if let Some(vm) = vm_of(export) {
                        add(vm, uri.with_export(export), length(export));
                    }
                }
            }
        }
    }
    vms
}

/// The VM that an export belongs to by its name; none where that is no name of ours.
fn vm_of(export: &str) -> Option<&str> {
    let vm = if export.is_empty() { UNNAMED } else { export.split('/').next().unwrap_or(export) };
    vbr_api::name_is_valid(vm).then_some(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &str, bytes: u64) -> RemoteExport {
        RemoteExport { name: name.into(), bytes, read_only: true }
    }

    #[test]
    fn exports_are_vms_by_name() {
        let server = Entry::parse("nbd://gate:4000").unwrap();
        let named = Entry::parse("mail=nbd+unix:///?socket=/run/m1.sock").unwrap();
        let second = Entry::parse("mail=nbd+unix:///?socket=/run/m2.sock").unwrap();
        let one = Entry::parse("nbds://other/crm").unwrap();
        let exports = ["web/b", "web/a", "shop", "", "Not a name", "../x"].map(|name| export(name, 7));
        let all = vms(&[
            (server, exports.to_vec()),
            (named, vec![export("", 5)]),
            (second, vec![]),
            (one, vec![export("crm", 3), export("hidden", 4)]),
        ]);
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["crm", "default", "mail", "shop", "web"]);
        let shown = |vm: &str| -> Vec<String> {
            all[vm].iter().map(|(uri, bytes)| format!("{uri} {bytes:?}")).collect()
        };
        assert_eq!(shown("web"), ["nbd://gate:4000/web/a Some(7)", "nbd://gate:4000/web/b Some(7)"]);
        let mail = ["/run/m1.sock Some(5)", "/run/m2.sock None"];
        assert_eq!(shown("mail"), mail.map(|rest| format!("nbd+unix:///?socket={rest}")));
        assert_eq!(shown("crm"), ["nbds://other:10809/crm Some(3)"]);
        assert_eq!(shown("default"), ["nbd://gate:4000/ Some(7)"]);
    }

    #[test]
    fn an_equals_sign_in_a_uri_names_nothing() {
        let entry = Entry::parse("nbd+unix:///web?socket=/run/x").unwrap();
        assert!(matches!(&entry, Entry::Server(uri) if uri.export == "web"));
        assert!(Entry::parse("Web=nbd://a/x").is_err());
        assert!(Entry::parse("web=/srv/x.img").is_err());
    }
}
