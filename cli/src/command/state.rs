//! `vbrctl state`: what makes a site that site, in one file that a passphrase seals.
//!
//! The file is written and read here, with the caller's rights; vbrd seals and opens it. A passphrase is never an
//! argument or a variable of the environment: others could read it there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use vbr_api::{StateExport, StateImport, StateSummary};

use super::Yes;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::Format;
use crate::passphrase;

/// Longest file that is read: beyond it, it is another one.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Keys, peers, grants, jobs, hosts and throttling rules of this site, in one file
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write the state of this site into a file, sealed under a passphrase
    ///
    /// Whoever has the file and the passphrase can be this site. Make another export after `peer rotate`: peers refuse
    /// the old key.
    #[command(
        after_help = "Example:\n  vbrctl state export /safe/branch-7.vbrstate --passphrase-file /safe/words\n\n\
                            Not in it: caches, datastores, history, the audit log, the configuration file."
    )]
    Export {
        /// The new file; mode 0600
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        /// Replace a file that exists
        #[arg(long)]
        force: bool,
    },
    /// Become the site that a file was exported from; vbrd restarts by itself
    ///
    /// Its jobs go on with their replicas: only what changed crosses. The site that it was exported from must not run any
    /// more.
    #[command(
        after_help = "Example:\n  vbrctl state import /safe/branch-7.vbrstate --passphrase-file /safe/words"
    )]
    Import {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        /// Although this site has peers or jobs; they stay in `before-import` in its state directory
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        yes: Yes,
    },
}

/// Where the passphrase comes from.
#[derive(Args, Debug)]
pub struct Passphrase {
    /// File whose first line is the passphrase, - for stdin [default: asked for on a terminal]
    #[arg(long, value_name = "PATH")]
    passphrase_file: Option<PathBuf>,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        if let Some(site) = context.client.site() {
            return Err(Failure::new(
                Exit::NotAllowed,
                "not_allowed",
                format!("The state of site {site} stays there"),
                "keys do not cross a link",
                "run vbrctl at that site",
            ));
        }
        match self {
            Self::Export { file, passphrase, force } => export(context, &file, &passphrase, force).await,
            Self::Import { file, passphrase, replace, yes } => {
                let what = "Import a state: this site becomes another one, and its vbrd restarts";
                context.confirm(what, yes.yes).await?;
                import(context, &file, &passphrase, replace).await
            }
        }
    }
}

impl Passphrase {
    async fn read(&self, context: &Context, twice: bool) -> Result<String, Failure> {
        let text = match &self.passphrase_file {
            Some(path) if path.as_os_str() == "-" => passphrase::first_line(&mut io::stdin().lock())
                .map_err(|error| Failure::io("Cannot read the passphrase", Path::new("stdin"), &error))?,
            Some(path) => File::open(path)
                .and_then(|mut file| passphrase::first_line(&mut file))
                .map_err(|error| Failure::io("Cannot read the passphrase", path, &error))?,
            None if context.may_ask() => passphrase::ask(twice).await?,
            None => {
                return Err(Failure::usage(
                    "No passphrase",
                    "there is no terminal to ask on",
                    "give a file with --passphrase-file PATH, or - for stdin",
                ));
            }
        };
        if text.is_empty() {
            return Err(Failure::usage("No passphrase", "its line is empty", "write it into the first line"));
        }
        Ok(text)
    }
}

async fn export(
    context: &Context,
    file: &Path,
    passphrase: &Passphrase,
    force: bool,
) -> Result<Exit, Failure> {
    let fail = |error: io::Error| Failure::io("Cannot write the state", file, &error);
    if !force && fs::symlink_metadata(file).is_ok() {
        return Err(fail(io::ErrorKind::AlreadyExists.into()));
    }
    let passphrase = passphrase.read(context, true).await?;
    let sealed = context.client.post_for_bytes("/v1/state/export", &StateExport { passphrase }).await?;
    write(file, &sealed).map_err(fail)?;
    let size = human::size(sealed.len() as u64);
    let line = format!("state exported to {} ({size}); keep the passphrase elsewhere", file.display());
    match context.output.format {
        Format::Json | Format::Jsonl => {
            let document = json!({ "file": file.display().to_string(), "bytes": sealed.len() });
            context.output.json_object(&document.to_string())?;
        }
        _ => context.output.emit(&line)?,
    }
    Ok(Exit::Done)
}

async fn import(
    context: &Context,
    file: &Path,
    passphrase: &Passphrase,
    replace: bool,
) -> Result<Exit, Failure> {
    let fail = |error: io::Error| Failure::io("Cannot read the state", file, &error);
    let mut sealed = Vec::new();
    File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut sealed)).map_err(fail)?;
    if sealed.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::usage(
            format!("{} is no state of a site", file.display()),
            format!("it is longer than {}", human::size(FILE_BYTES_MAX)),
            "name the file that `vbrctl state export` wrote",
        ));
    }
    let passphrase = passphrase.read(context, false).await?;
    let request = StateImport { passphrase, state: base64(&sealed), replace };
    let document = context.client.post_json("/v1/state/import", &request).await?;
    let summary: StateSummary = document.one()?;
    let line = format!(
        "the state of site {} is imported: {}, {}; vbrd restarts with it",
        summary.site,
        human::count(summary.peers.into(), "peer"),
        human::count(summary.jobs.into(), "job")
    );
    context.output.done(&document, &line, json!({}))?;
    Ok(Exit::Done)
}

/// Whole or not at all, and for nobody else.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn base64_as_in_the_rfc() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd, 0xfc]), "//79/A==");
    }

    #[test]
    fn files_are_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(dir.path().join("state.new"), b"left over").unwrap();
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
