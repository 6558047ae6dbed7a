//! Running the system's tools: every failure names the command and shows what it said.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end; an error holds its standard error.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    Ok(String::from_utf8_lossy(&finish(&mut command)?.stdout).into_owned())
}

/// Runs a prepared command to its end; an error holds its standard error.
pub fn finish(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, said.trim());
    }
    Ok(output)
}

/// True where a program can be found.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// True where this process may make namespaces and mounts.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a case is not run. Returns true so that a test can `return Ok(())` on it.
pub fn skip_unless(condition: bool, case: &str, why: &str) -> bool {
    if !condition {
        println!("skipped {case}: {why}");
    }
    !condition
}
