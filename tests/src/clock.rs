//! A wall clock that jumps, for one process: a library that is loaded before the C library, and adds what a file says.
//!
//! The process asks the system for the time as ever; what it is told is so many seconds off, from the moment the file
//! says so. Time that passes (the monotonic clock) and the times of files stay right, as after a real jump. Owns two
//! files. Needs a C compiler, as the build does.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::run;
use crate::site::Site;

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *off;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("VBR_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *off, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) off = at;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int answer = syscall(SYS_clock_gettime, clock, at);
    if (!answer && off && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += *off;
    return answer;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    int answer = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return answer;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// See the module.
pub struct WallClock {
    library: PathBuf,
    off: PathBuf,
    file: File,
}

impl WallClock {
    /// One that is right so far; its files in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let (source, library, off) = (dir.join("clock.c"), dir.join("clock.so"), dir.join("clock.off"));
        std::fs::write(&source, LIBRARY)?;
        let [to, from] = [&library, &source].map(|path| path.to_string_lossy().into_owned());
        run("cc", ["-shared", "-fPIC", "-O1", "-o", &to, &from]).context("a clock needs a C compiler")?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&off)?;
        let clock = Self { library, off, file };
        clock.set(0)?;
        Ok(clock)
    }

    /// It is so many days off from now on.
    pub fn set(&self, days: i64) -> Result<()> {
        Ok(self.file.write_all_at(&(days * 86_400).to_ne_bytes(), 0)?)
    }

    /// Gives it to a site, from its next start on.
    pub fn give(&self, site: &Site) {
        site.set_environment(&[("LD_PRELOAD", &self.library), ("VBR_TEST_CLOCK", &self.off)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_told_another_time() {
        let dir = tempfile::tempdir().unwrap();
        let clock = WallClock::new(dir.path()).unwrap();
        let said = |days: i64| {
            clock.set(days).unwrap();
            let mut date = Command::new("date");
            date.arg("+%s").env("LD_PRELOAD", &clock.library).env("VBR_TEST_CLOCK", &clock.off);
            let said = String::from_utf8(date.output().unwrap().stdout).unwrap();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (said.trim().parse::<i64>().unwrap() - now.as_secs() as i64) as f64 / 86_400.0
        };
        for days in [0, 400, -400] {
            assert!((said(days) - days as f64).abs() < 0.01, "{days} days");
        }
    }
}
