//! What a site speaks: the major version of the control protocol, and the capabilities that its Hello announces.
//!
//! Pure. Two sites of different majors cannot work together, but each has to say so: a control stream of
//! another major is accepted, answered with our own HELLO in the place of an answer, and closed. So the first
//! frame of a stream, its header and the record of its Hello stay as they are in every version to come.
//! [`Dialect::from_environment`] has a site speak as an older one does, or one of another major: for tests, and
//! to keep a new capability out of use.

use libp2p::StreamProtocol;

use super::capability;
use crate::error::Problem;

/// Speaks another dialect than ours, as `MAJOR` or `MAJOR:CAPABILITIES`.
pub const VARIABLE: &str = "VBR_PROTOCOL";
/// Majors that are told from one another: ours, those before and some to come.
const CONTROL: [StreamProtocol; 9] = [
    StreamProtocol::new("/vbr/control/1"),
    StreamProtocol::new("/vbr/control/2"),
    StreamProtocol::new("/vbr/control/3"),
    StreamProtocol::new("/vbr/control/4"),
    StreamProtocol::new("/vbr/control/5"),
    StreamProtocol::new("/vbr/control/6"),
    StreamProtocol::new("/vbr/control/7"),
    StreamProtocol::new("/vbr/control/8"),
    StreamProtocol::new("/vbr/control/9"),
];

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    major: u8,
    capabilities: u64,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { major: 1, capabilities: capability::ALL }
    }
}

impl Dialect {
    /// Ours, or what [`VARIABLE`] says.
    pub fn from_environment() -> Result<Self, Problem> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => Self::parse(&text),
            _ => Ok(Self::default()),
        }
    }

    /// From `MAJOR` or `MAJOR:CAPABILITIES`.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let (major, bits) = text.split_once(':').unwrap_or((text, ""));
        let known = 1..=CONTROL.len() as u8;
        let major = major.parse().ok().filter(|major| known.contains(major));
        let bits = if bits.is_empty() { Some(capability::ALL) } else { bits.parse().ok() };
        match (major, bits) {
            (Some(major), Some(bits)) => Ok(Self { major, capabilities: bits & capability::ALL }),
            _ => Err(Problem::invalid(
                "the environment of vbrd",
                format!(
                    "{VARIABLE}=\"{text}\" is no version of the protocol; allowed: 1 to 9, and 1:BITS for fewer capabilities"
                ),
                format!("take {VARIABLE} out of the environment: it is for tests alone"),
            )),
        }
    }

    /// What the Hello says: the first release had no capabilities.
    pub fn minor(&self) -> u16 {
        u16::from(self.capabilities != 0)
    }

    /// Bits of [`capability`].
    pub fn capabilities(&self) -> u64 {
        self.capabilities
    }

    /// The protocol of our control streams.
    pub fn control(&self) -> StreamProtocol {
        CONTROL[usize::from(self.major) - 1].clone()
    }

    /// What is accepted of a paired peer: our control protocol, and those of other majors to say that they are not.
    pub fn accepted() -> impl Iterator<Item = StreamProtocol> {
        CONTROL.into_iter()
    }

    /// Why there is no link with a peer whose control stream is this one; none where it is ours, or none of them.
    pub fn refusal(&self, protocol: &StreamProtocol) -> Option<String> {
        let theirs = 1 + CONTROL.iter().position(|known| known == protocol)? as u8;
        let why =
            format!("the peer speaks version {theirs} of the protocol, this vbr version {}", self.major);
        (theirs != self.major).then(|| format!("{why}: {NEXT}"))
    }

    /// Why there is no link with a peer that does not take our control stream.
    pub fn refused(&self, software: Option<&str>) -> String {
        let peer = software.map_or_else(String::new, |version| format!(" (vbr {version})"));
        format!(
            "the peer{peer} does not speak version {} of the protocol, as this vbr does: {NEXT}",
            self.major
        )
    }
}

/// What helps against either.
const NEXT: &str = "install the same release of vbr at both sites";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects_are_parsed_or_refused() {
        assert_eq!(Dialect::parse("1").unwrap(), Dialect::default());
        assert_eq!(Dialect::parse("1:0").unwrap(), Dialect { major: 1, capabilities: 0 });
        assert_eq!(Dialect::parse("9:3").unwrap(), Dialect { major: 9, capabilities: 3 });
        // Nobody announces what he does not have.
        assert_eq!(Dialect::parse("1:18446744073709551615").unwrap(), Dialect::default());
        for bad in ["0", "10", "x", ":1", "1:x", "1:-1", " 1"] {
            assert_eq!(Dialect::parse(bad).unwrap_err().code, "invalid", "{bad}");
        }
    }

    #[test]
    fn majors_are_told_apart() {
        let (one, two) = (Dialect::default(), Dialect { major: 2, capabilities: 0 });
        assert_eq!(one.control().as_ref(), "/vbr/control/1");
        assert_eq!((one.refusal(&one.control()), two.refusal(&two.control())), (None, None));
        let why = one.refusal(&two.control()).unwrap();
        assert!(why.contains("speaks version 2 of the protocol, this vbr version 1: install"), "{why}");
        assert_eq!(one.refusal(&StreamProtocol::new("/vbr/data/1")), None);
        assert!(one.refused(Some("2.0.0")).starts_with("the peer (vbr 2.0.0) does not speak version 1"));
    }
}
