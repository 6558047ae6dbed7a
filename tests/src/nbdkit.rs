//! An NBD server that is not ours: nbdkit over a directory of images, plain or with TLS. And the certificates for it.
//!
//! Owns the process; killed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// For it to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub struct Nbdkit {
    args: Vec<String>,
    pid_file: PathBuf,
    child: Option<Child>,
}

impl Nbdkit {
    /// Serves each file of a directory as an export. `at`: its options for where it listens and how.
    pub fn start(images: &Path, at: &[String]) -> Result<Self> {
        let (images, pid_file) = (images.display().to_string(), images.with_extension("pid"));
        let mut args = vec!["--foreground".to_owned(), "--pidfile".into(), pid_file.display().to_string()];
        args.extend_from_slice(at);
        args.extend(["file".to_owned(), format!("dir={images}")]);
        let mut server = Self { args, pid_file, child: None };
        server.again()?;
        Ok(server)
    }

    /// Starts it once more.
    pub fn again(&mut self) -> Result<()> {
        let socket = self.args.iter().find_map(|arg| arg.strip_prefix("--unix=")).map(Path::new);
        for left in socket.into_iter().chain([self.pid_file.as_path()]).filter(|left| left.exists()) {
            std::fs::remove_file(left)?;
        }
        let mut command = Command::new("nbdkit");
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("starting nbdkit")?;
        let child = self.child.insert(child);
        let end = Instant::now() + PATIENCE;
        // It is written when the server listens.
        while !self.pid_file.exists() {
            ensure!(child.try_wait()?.is_none(), "nbdkit ended: {:?}", self.args);
            ensure!(Instant::now() < end, "nbdkit does not come up: {:?}", self.args);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// As a crash does it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// An authority of its own in a directory: `server/` and `client/` in the layout of qemu, for `127.0.0.1` and `localhost`.
pub fn make_certificates(directory: &Path) -> Result<()> {
    let at = |name: &str| directory.join(name).display().to_string();
    let openssl = |args: &[&str]| run("openssl", args).map(drop);
    for who in ["server", "client"] {
        std::fs::create_dir_all(directory.join(who))?;
    }
    let (ca, key) = (at("ca-cert.pem"), at("ca-key.pem"));
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let mut order = vec!["req", "-x509", "-days", "30", "-subj", "/CN=the test's authority"];
    order.extend(curve);
    order.extend(["-keyout", &key, "-out", &ca]);
    order.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    openssl(&order)?;
    for (who, name, purpose) in [("server", "localhost", "serverAuth"), ("client", "branch", "clientAuth")] {
        let key = at(&format!("{who}/{who}-key.pem"));
        let (request, extensions) = (at(&format!("{who}.csr")), at(&format!("{who}.ext")));
        let certificate = at(&format!("{who}/{who}-cert.pem"));
        let subject = format!("/CN={name}");
        let mut order = vec!["req", "-new", "-subj", &subject];
        order.extend(curve);
        order.extend(["-keyout", &key, "-out", &request]);
        openssl(&order)?;
        let words = format!(
            "subjectAltName=DNS:{name},IP:127.0.0.1\nextendedKeyUsage={purpose}\nkeyUsage=critical,digitalSignature\n"
        );
        std::fs::write(&extensions, words)?;
        openssl(&[
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &at("ca-key.pem"),
            "-CAcreateserial",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ])?;
        std::fs::copy(&ca, directory.join(who).join("ca-cert.pem"))?;
    }
    Ok(())
}
