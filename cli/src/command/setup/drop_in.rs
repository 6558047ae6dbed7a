//! What vbrd's unit needs besides, as a drop-in: directories to write to, groups, devices, sight of /home.
//!
//! Added to, never taken from: a second run with other disks keeps what the first one gave. A drop-in that says anything
//! else is somebody's own and is refused. Pure: text in, text out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Written by vbrctl setup, which adds to it. To take something away, remove its line, then\n\
                    # systemctl daemon-reload && systemctl restart vbrd.\n";

/// What the unit grants besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropIn {
    /// Directories that vbrd writes to.
    pub write: BTreeSet<PathBuf>,
    /// Its supplementary groups.
    pub groups: BTreeSet<String>,
    /// Block devices that it reads.
    pub devices: BTreeSet<PathBuf>,
    /// Disks lie below /home, /root or /run/user.
    pub home: bool,
}

impl DropIn {
    /// Reads what an earlier run wrote.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut found = Self::default();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| format!("{line:?} is no setting"))?;
            let words = || split(value);
            match (key, value) {
                ("ReadWritePaths", _) => found.write.extend(words().into_iter().map(PathBuf::from)),
                ("RequiresMountsFor", _) | ("PrivateDevices", "no") => {}
                ("SupplementaryGroups", _) => found.groups.extend(words()),
                ("ProtectHome", "read-only") => found.home = true,
                ("DeviceAllow", _) => {
                    let device = words().into_iter().next().unwrap_or_default();
                    found.devices.insert(PathBuf::from(device));
                }
                _ => return Err(format!("{line:?} is not of setup's making")),
            }
        }
        Ok(found)
    }

    /// As systemd reads it.
    pub fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        if !self.write.is_empty() {
            // Not mounted is not the same as empty: vbrd is not to start then.
            text += "[Unit]\n";
            self.write.iter().for_each(|path| text += &format!("RequiresMountsFor={}\n", quoted(path)));
        }
        text += "[Service]\n";
        self.write.iter().for_each(|path| text += &format!("ReadWritePaths={}\n", quoted(path)));
        self.groups.iter().for_each(|group| text += &format!("SupplementaryGroups={group}\n"));
        if !self.devices.is_empty() {
            text += "PrivateDevices=no\n";
            self.devices.iter().for_each(|device| text += &format!("DeviceAllow={} r\n", quoted(device)));
        }
        if self.home {
            text += "ProtectHome=read-only\n";
        }
        text
    }
}

/// systemd splits at blanks, takes backslashes as escapes and percent signs as specifiers.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.contains([' ', '"', '\\', '\'']) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    text
}

fn split(value: &str) -> Vec<String> {
    let (mut words, mut word, mut in_quotes, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in value.chars() {
        match c {
            c if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => in_quotes = !in_quotes,
            c if c.is_whitespace() && !in_quotes => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words.into_iter().map(|word| word.replace("%%", "%")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> DropIn {
        DropIn {
            write: ["/srv/replicas", "/srv/my disks/100%/.vbr"].map(PathBuf::from).into(),
            groups: ["disk", "libvirt-qemu"].map(str::to_owned).into(),
            devices: [PathBuf::from("/dev/mapper/vg-web")].into(),
            home: true,
        }
    }

    #[test]
    fn it_reads_what_it_wrote() {
        for one in [full(), DropIn::default()] {
            assert_eq!(DropIn::parse(&one.text()).unwrap(), one, "{}", one.text());
        }
        let text = full().text();
        assert!(text.contains("ReadWritePaths=\"/srv/my disks/100%%/.vbr\"\n"), "{text}");
        assert!(text.contains("RequiresMountsFor=/srv/replicas\n"), "{text}");
        assert!(text.contains("PrivateDevices=no\nDeviceAllow=/dev/mapper/vg-web r\n"), "{text}");
    }

    #[test]
    fn what_is_not_its_own_is_refused() {
        assert!(DropIn::parse("[Service]\nUser=root\n").unwrap_err().contains("User=root"));
        assert!(DropIn::parse("[Service]\nPrivateDevices=yes\n").is_err());
    }
}
