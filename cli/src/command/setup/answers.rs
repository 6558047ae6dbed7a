//! What the operator wants: flags, and questions for what no flag says where there is somebody to ask.
//!
//! Few questions, each with a default that does no harm: what is there stays. Every answer is checked before the next
//! question.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use vbr_api::name_is_valid;

use super::machine::{GROUP, Machine};
use super::plan::Present;
use super::{Flags, advice, plan};
use crate::context::Context;
use crate::failure::Failure;
use crate::human;

/// What a site is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Its disks are replicated
    Source,
    /// It keeps replicas
    Target,
    Both,
}

impl Role {
    pub fn is_source(self) -> bool {
        self != Self::Target
    }

    pub fn is_target(self) -> bool {
        self != Self::Source
    }
}

/// The cache's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As it is.
    Keep,
    /// As advised.
    Auto,
    /// In the words of the configuration.
    Size(String),
}

/// What is wanted; none: as it is.
#[derive(Clone, Debug)]
pub struct Answers {
    pub role: Role,
    pub name: Option<String>,
    pub datastore: Option<PathBuf>,
    pub cache: Cache,
    pub listen: Option<Vec<String>>,
    pub advertise: Option<Vec<String>>,
    pub disks: Vec<PathBuf>,
    pub admins: Vec<String>,
    pub join: Option<String>,
    pub invite: bool,
}

impl Answers {
    /// What the flags say, checked.
    pub fn of_flags(flags: &Flags, present: &Present) -> Result<Self, Failure> {
        let check = |what: &str, checked: Result<(), String>| {
            checked.map_err(|why| {
                Failure::usage(format!("{what} cannot be that"), why, "see vbrctl setup --help")
            })
        };
        if let Some(name) = &flags.name {
            check("--name", named(name).map(drop))?;
        }
        let listed = |words: &[String], read: fn(&str) -> Result<String, String>| {
            let read: Result<Vec<String>, String> = words.iter().map(|word| read(word)).collect();
            read.map_err(|why| Failure::usage("An address cannot be that", why, "see vbrctl setup --help"))
        };
        let listen = match &flags.listen[..] {
            [] => None,
            [none] if none == "none" => Some(Vec::new()),
            words => Some(listed(words, listening)?),
        };
        let advertise =
            if flags.advertise.is_empty() { None } else { Some(listed(&flags.advertise, advertised)?) };
        let is_set = present.text(&["cache", "size"]).is_some();
        let cache = match flags.cache_size.as_deref() {
            None if flags.disks.is_empty() || is_set => Cache::Keep,
            None | Some("auto") => Cache::Auto,
            Some(size) => {
                check("--cache-size", cached(size).map(drop))?;
                Cache::Size(size.to_owned())
            }
        };
        Ok(Self {
            role: flags.role.unwrap_or(Role::Both),
            name: flags.name.clone(),
            datastore: flags.datastore.clone(),
            cache,
            listen,
            advertise,
            disks: flags.disks.clone(),
            admins: flags.admin.clone(),
            join: flags.join.clone(),
            invite: flags.invite,
        })
    }

    /// Asks for what no flag said.
    pub async fn ask(
        &mut self,
        context: &Context,
        flags: &Flags,
        machine: &Machine,
        present: &Present,
    ) -> Result<(), Failure> {
        context.output.note("Setting up this site. Enter takes what stands in brackets; nothing is changed before you agree.\n");
        if flags.name.is_none() {
            let now = present.text(&["site", "name"]).unwrap_or_else(|| host_name(machine));
            self.name = Some(ask("Name of this site at its peers", &now, named).await?);
        }
        if flags.role.is_none() {
            self.role = ask(
                "Are disks of this site replicated (source), does it keep replicas (target), or both",
                "both",
                role,
            )
            .await?;
        }
        if self.role.is_target() {
            self.ask_target(flags, present).await?;
        }
        if self.role.is_source() && flags.disks.is_empty() {
            self.disks = ask(
                "Disks, or directories with images, that vbr is to read; separated by commas [none now]",
                "",
                paths,
            )
            .await?;
        }
        if flags.cache_size.is_none() {
            self.ask_cache(machine, present).await?;
        }
        if flags.admin.is_empty()
            && let Some(user) = caller(machine)
        {
            let question = format!("Users who may order everything with vbrctl (group {GROUP}); - for none");
            self.admins = ask(&question, &user, |text| Ok(words(text))).await?;
        }
        if flags.join.is_none() && !flags.invite {
            let code =
                ask("Code of an invitation by another site [none]", "", |text| Ok(text.to_owned())).await?;
            self.join = Some(code).filter(|code| !code.is_empty());
            if self.join.is_none() && self.role.is_target() {
                self.invite = ask("Make an invitation for another site now (y/n)", "n", yes_or_no).await?;
            }
        }
        Ok(())
    }

    async fn ask_target(&mut self, flags: &Flags, present: &Present) -> Result<(), Failure> {
        if flags.datastore.is_none() {
            let question =
                "Directory where replicas are kept; XFS or btrfs makes restore points without copying";
            self.datastore = Some(ask(question, &present.datastore(), directory).await?);
        }
        if flags.listen.is_empty() {
            let now =
                present.list(&["wire", "listen"]).unwrap_or_else(|| vec!["/ip4/0.0.0.0/tcp/7300".into()]);
            let read = |text: &str| words(text).iter().map(|word| listening(word)).collect();
            self.listen =
                Some(ask("Where peers may connect: a port, or addresses", &now.join(", "), read).await?);
        }
        if flags.advertise.is_empty() {
            let now = present.list(&["wire", "advertise"]).unwrap_or_default().join(", ");
            let read = |text: &str| words(text).iter().map(|word| advertised(word)).collect();
            let question =
                "Name or address under which peers reach it, behind NAT or by DNS; - for this machine's own";
            self.advertise = Some(ask(question, if now.is_empty() { "-" } else { &now }, read).await?);
        }
        Ok(())
    }

    async fn ask_cache(&mut self, machine: &Machine, present: &Present) -> Result<(), Failure> {
        let bytes = self
            .disks
            .iter()
            .filter_map(|disk| std::fs::metadata(machine.at(disk)).ok())
            .map(|meta| meta.len())
            .sum();
        let advice = advice::cache_size(bytes, plan::file_system(machine, present));
        context_note(&format!("  Advice for the cache: {} ({}).", human::size(advice.effective), advice.why));
        let now = present.text(&["cache", "size"]).unwrap_or_else(|| "auto".into());
        let size = ask("Size of the cache: a size like 20GiB, or auto", &now, |text| match text {
            "auto" => Ok("auto".to_owned()),
            text => cached(text),
        });
        self.cache = match size.await? {
            size if size == "auto" => Cache::Auto,
            size => Cache::Size(size),
        };
        Ok(())
    }
}

fn context_note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Asks until the answer is good; the end of input takes the default.
async fn ask<T>(
    question: &str,
    default: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    loop {
        let shown =
            if default.is_empty() { format!("{question}: ") } else { format!("{question} [{default}]: ") };
        // On a thread of its own, so that Ctrl-C is heard meanwhile.
        let line = tokio::task::spawn_blocking(move || -> io::Result<(usize, String)> {
            let mut stderr = io::stderr();
            stderr.write_all(shown.as_bytes())?;
            stderr.flush()?;
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|length| (length, line))
        });
        let answer = line.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (length, line) = answer
            .map_err(|error| Failure::usage("Cannot ask", error.to_string(), "give flags, and --yes"))?;
        let text = if line.trim().is_empty() { default } else { line.trim() };
        match read(text) {
            Ok(value) => return Ok(value),
            Err(why) if length == 0 => {
                return Err(Failure::usage("There is no answer", why, "give flags, and --yes"));
            }
            Err(why) => context_note(&format!("  {why}")),
        }
    }
}

fn host_name(machine: &Machine) -> String {
    let name = machine.read("/proc/sys/kernel/hostname");
    let name = name.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    if name_is_valid(&name) { name } else { "site-1".into() }
}

/// Who ran sudo, unless that user is a member already.
fn caller(machine: &Machine) -> Option<String> {
    let user = std::env::var("SUDO_USER").ok().filter(|user| user != "root" && machine.has_user(user))?;
    let is_member = machine.group(GROUP).is_some_and(|(_, members)| members.contains(&user));
    (!is_member).then_some(user)
}

/// Separated by commas or blanks; `-` is nothing.
fn words(text: &str) -> Vec<String> {
    text.split([',', ' ']).filter(|word| !word.is_empty() && *word != "-").map(str::to_owned).collect()
}

fn named(text: &str) -> Result<String, String> {
    if name_is_valid(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit"))
}

fn role(text: &str) -> Result<Role, String> {
    Role::from_str(text, true).map_err(|_| format!("{text:?} is neither source nor target nor both"))
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err("say y or n".into()),
    }
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("write the whole path, from / on".into()) }
}

fn paths(text: &str) -> Result<Vec<PathBuf>, String> {
    text.split(',').map(str::trim).filter(|path| !path.is_empty()).map(directory).collect()
}

fn cached(text: &str) -> Result<String, String> {
    match human::parse_size(text)? {
        bytes if bytes < 256 << 20 => Err("the cache has 256MiB at least".into()),
        _ => Ok(text.to_owned()),
    }
}

/// A port, or a multiaddr.
fn listening(text: &str) -> Result<String, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(format!("/ip4/0.0.0.0/tcp/{port}")),
        _ if text.starts_with("/ip4/") || text.starts_with("/ip6/") => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is neither a port nor an address like /ip4/0.0.0.0/tcp/7300")),
    }
}

/// `dr.example.com`, `dr.example.com:7301`, `192.0.2.7`, `[2001:db8::5]:7301`, or a multiaddr.
pub fn advertised(text: &str) -> Result<String, String> {
    let wrong = || {
        format!("{text:?} is no address: say dr.example.com, 192.0.2.7:7301, or /dns/dr.example.com/tcp/7300")
    };
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let (host, port) = match text.parse::<std::net::Ipv6Addr>() {
        Ok(_) => (text, None),
        Err(_) => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.map_or(Ok(7300), str::parse).map_err(|_| wrong())?;
    let is_name =
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    let kind = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => "ip4",
        Ok(std::net::IpAddr::V6(_)) => "ip6",
        Err(_) if is_name => "dns",
        Err(_) => return Err(wrong()),
    };
    Ok(format!("/{kind}/{host}/tcp/{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, wanted) in [
            ("dr.example.com", "/dns/dr.example.com/tcp/7300"),
            ("dr.example.com:7301", "/dns/dr.example.com/tcp/7301"),
            ("192.0.2.7", "/ip4/192.0.2.7/tcp/7300"),
            ("2001:db8::5", "/ip6/2001:db8::5/tcp/7300"),
            ("[2001:db8::5]:7301", "/ip6/2001:db8::5/tcp/7301"),
            ("/dns/x/tcp/1", "/dns/x/tcp/1"),
        ] {
            assert_eq!(advertised(text).as_deref(), Ok(wanted));
        }
        for bad in ["", "a b", "x:y", "http://x"] {
            assert!(advertised(bad).is_err(), "{bad}");
        }
        assert_eq!(listening("7301").as_deref(), Ok("/ip4/0.0.0.0/tcp/7301"));
        assert!(listening("0").is_err() && listening("dr").is_err());
    }

    #[test]
    fn words_and_sizes() {
        assert_eq!(words("a, b c,-"), ["a", "b", "c"]);
        assert!(words("-").is_empty());
        assert_eq!(paths("/a, /b c").unwrap(), [PathBuf::from("/a"), PathBuf::from("/b c")]);
        assert!(paths("a").is_err() && cached("1MiB").is_err() && cached("x").is_err());
        assert_eq!(cached("20GiB").as_deref(), Ok("20GiB"));
    }
}
