//! A webhook's server: keeps the notifications that it gets, or takes connections and never answers.
//!
//! Owns a listener on loopback and a thread that ends with the process. Reachable from outside network
//! namespaces alone, so its sites have to be on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use vbr_api::Notification;

/// See the module.
pub struct Hook {
    address: String,
    got: Arc<Mutex<Vec<Notification>>>,
}

impl Hook {
    /// Takes what comes.
    pub fn start() -> Result<Self> {
        Self::serve(false)
    }

    /// Takes connections and says nothing.
    pub fn silent() -> Result<Self> {
        Self::serve(true)
    }

    fn serve(silent: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, got) = (listener.local_addr()?.to_string(), Arc::new(Mutex::new(Vec::new())));
        let kept = got.clone();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                if silent {
                    held.push(stream);
                } else if let Ok(note) = take(stream) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(note);
                }
            }
        });
        Ok(Self { address, got })
    }

    /// Where it listens, as `ADDRESS:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All that came so far.
    pub fn all(&self) -> Vec<Notification> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first of an event.
    pub fn got(&self, event: &str) -> Option<Notification> {
        self.all().into_iter().find(|note| note.event == event)
    }
}

/// Makes a program for a hook's command: it adds `EVENT JOB STATE`, and what it was told, to the file `told`.
pub fn write_script(script: &Path, told: &Path) -> Result<()> {
    let words = format!(
        "#!/bin/sh\n{{ echo \"$VBR_EVENT $VBR_JOB $VBR_STATE\"; cat; echo; }} >> {}\n",
        told.display()
    );
    std::fs::write(script, words)?;
    Ok(std::fs::set_permissions(script, PermissionsExt::from_mode(0o755))?)
}

fn take(mut stream: TcpStream) -> Result<Notification> {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(note) = serde_json::from_str(body)
        {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
            return Ok(note);
        }
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "the request ends early: {text}");
        request.extend_from_slice(&piece[..read]);
    }
}
