//! One run of a command: no shell, JSON on its standard input, a process group of its own that is killed when the
//! time is over. The beginning of what it prints goes into the log.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use vbr_api::Notification;

use crate::config::NotifySection;

/// Of what it prints, so much is kept.
const OUTPUT_BYTES_MAX: usize = 4096;
/// What it left behind may hold its output open; it is not waited for longer than this.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// Kills the group when dropped, whatever happened: also where the appliance stops.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // It may be gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs it; an error where it could not be started, took too long or failed.
pub(super) async fn run(section: &NotifySection, note: &Notification, body: &[u8]) -> Result<(), String> {
    let Some((program, words)) = section.command.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command
        .args(words)
        .env("VBR_EVENT", &note.event)
        .env("VBR_SITE", &note.site)
        .env("VBR_JOB", note.job.as_deref().unwrap_or_default())
        .env("VBR_TEXT", &note.text)
        .env("VBR_SESSION", note.session.as_ref().map_or("", |session| &session.session))
        .env("VBR_STATE", note.session.as_ref().map_or("", |session| session.state.as_str()))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let ended = tokio::time::timeout(section.timeout, attend(&mut child, body)).await;
    let Ok(ended) = ended else {
        group.kill();
        let _ = child.wait().await;
        return Err(format!(
            "{program} did not end within {} s and was killed",
            section.timeout.as_secs_f32()
        ));
    };
    group.0 = None; // What it left running on purpose goes on.
    let (status, output) = ended.map_err(|error| format!("{program}: {error}"))?;
    if !output.is_empty() {
        tracing::info!(hook = section.name, output, "what the command said");
    }
    if status.success() {
        return Ok(());
    }
    let last = output.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    Err(format!("{program} ended with {status}{last}"))
}

/// Feeds it, listens to it, and waits for its end.
async fn attend(child: &mut Child, body: &[u8]) -> std::io::Result<(std::process::ExitStatus, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(body).await; // It need not read it.
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = {
        let listen = async { tokio::join!(beginning(stdout, &mut out), beginning(stderr, &mut err)) };
        let mut beside = std::pin::pin!(async { tokio::join!(feed, listen) });
        let status = tokio::select! {
            status = child.wait() => Some(status?),
            _ = &mut beside => None,
        };
        match status {
            Some(status) => {
                let _ = tokio::time::timeout(OUTPUT_WAIT, beside).await;
                status
            }
            None => child.wait().await?,
        }
    };
    let room = OUTPUT_BYTES_MAX.saturating_sub(err.len());
    out.truncate(room);
    out.extend_from_slice(&err);
    Ok((status, String::from_utf8_lossy(&out).trim_end().to_string()))
}

/// Reads to the end and keeps the beginning: a full pipe would stop the command.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut piece = vec![0; OUTPUT_BYTES_MAX];
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
}
