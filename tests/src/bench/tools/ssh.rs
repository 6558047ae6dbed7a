//! An sshd of our own at the target's end, with keys that live as long as the working directory: the
//! transport of restic and borg. The system's is not touched.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Stage;
use crate::link::End;
use crate::process::run;

pub const PORT: u16 = 2222;

/// The ssh client's options, without the host.
pub struct Ssh {
    options: String,
}

impl Ssh {
    /// Makes keys and starts the daemon.
    pub fn start(stage: &mut Stage) -> Result<Self> {
        let Some(sshd) =
            ["/usr/sbin/sshd", "/sbin/sshd"].iter().find(|path| std::fs::exists(path).is_ok_and(|is| is))
        else {
            bail!("sshd is not installed (package openssh-server)");
        };
        let (host, user) = (stage.dir.join("host-key"), stage.dir.join("user-key"));
        for key in [&host, &user] {
            let path = key.to_string_lossy();
            run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", &path]).context("ssh-keygen")?;
        }
        let config = stage.dir.join("sshd_config");
        let text = format!(
            "Port {PORT}\nListenAddress {}\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}.pub\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             Compression no\nSubsystem sftp internal-sftp\nSetEnv BORG_BASE_DIR={}\n",
            End::Target.address(),
            host.display(),
            user.display(),
            stage.state().join("target-home").display(),
        );
        std::fs::write(&config, text)?;
        // sshd wants it for its unprivileged half; the system's unit makes it where that one runs.
        std::fs::create_dir_all("/run/sshd")?;
        let mut command: Command = stage.command(End::Target, sshd);
        command.args(["-D", "-e", "-f"]).arg(&config);
        stage.daemon(End::Target, &mut command, PORT)?;
        let options = format!(
            "-F none -p {PORT} -i {} -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            user.display()
        );
        Ok(Self { options })
    }

    /// `ssh` with its options.
    pub fn command(&self) -> String {
        format!("ssh {}", self.options)
    }

    /// The target, as ssh names it.
    pub fn host() -> String {
        format!("root@{}", End::Target.address())
    }
}
