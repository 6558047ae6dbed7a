//! A disk that somebody else holds still, for as long as he does.
//!
//! The first read that fails is the last one: whatever answers after that, a server after its restart for one, may show
//! another moment. Not its job: starting anew, which the job does with a new session.

use std::io;
use std::sync::OnceLock;

use crate::block::{BlockRead, Extent};

/// See the module.
pub(super) struct OneMoment<R> {
    reader: R,
    disk: String,
    /// Who holds it: `its NBD server`.
    holder: &'static str,
    lost: OnceLock<String>,
}

impl<R: BlockRead> OneMoment<R> {
    pub fn new(reader: R, disk: String, holder: &'static str) -> Self {
        Self { reader, disk, holder, lost: OnceLock::new() }
    }

    fn once<T>(&self, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.lost.get().is_none() {
            match read() {
                Ok(_) if self.lost.get().is_some() => {}
                Ok(read) => return Ok(read),
                // A range that is not there says nothing of the holder.
                Err(error) if self.is_ours(&error) => return Err(error),
                Err(error) => {
                    let why = match error.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer".to_owned(),
                        _ => error.to_string(),
                    };
                    tracing::warn!(disk = self.disk, why, "{} failed a read", self.holder);
                    let _ = self.lost.set(why);
                }
            }
        }
        let why = self.lost.get().map_or("", String::as_str);
        let words = format!(
            "{} failed ({why}); what is shown after that need not be the same moment, so nothing more is read of it",
            self.holder
        );
        Err(io::Error::new(io::ErrorKind::NotConnected, words))
    }

    /// An order of ours that was wrong: it was never sent.
    fn is_ours(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::UnexpectedEof
            && error.get_ref().is_some_and(|inner| !inner.is::<crate::nbd::NbdError>())
    }
}

impl<R: BlockRead> BlockRead for OneMoment<R> {
    fn len(&self) -> u64 {
        self.reader.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.once(|| self.reader.read_at(offset, buf))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.once(|| self.reader.next_data(from))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Fails once, and is there again.
    struct Restarts(AtomicBool);

    impl BlockRead for Restarts {
        fn len(&self) -> u64 {
            8
        }

        fn read_at(&self, offset: u64, _: &mut [u8]) -> io::Result<()> {
            match offset {
                9.. => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end")),
                5 if !self.0.swap(true, Ordering::Relaxed) => Err(io::Error::from_raw_os_error(5)),
                _ => Ok(()),
            }
        }

        fn next_data(&self, _: u64) -> io::Result<Option<Extent>> {
            Ok(None)
        }
    }

    #[test]
    fn nothing_is_read_after_a_failure() {
        let reader = OneMoment::new(Restarts(AtomicBool::new(false)), "x".into(), "its server");
        let read = |offset| reader.read_at(offset, &mut [0]);
        read(1).unwrap();
        assert_eq!(read(9).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        read(1).unwrap();
        let lost = read(5).unwrap_err();
        assert!(lost.kind() == io::ErrorKind::NotConnected && lost.to_string().contains("its server failed"));
        assert_eq!(read(1).unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(reader.next_data(0).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
}
