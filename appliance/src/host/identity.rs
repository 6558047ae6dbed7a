//! The name of one moment of a VM's disks: a line that a session keeps, and that is the same again only
//! where nothing changed. Pure but for random bytes. Not its job: looking at disks (see `mark`).

use jiff::Timestamp;

use super::mark::Mark;

/// `1.TIME.KINDS.MOMENT.HASH`: what a later start needs to look again, and a hash over all of it. With
/// a mark that proves nothing the hash is random: it never comes again.
pub(super) fn identity_of(marks: &[(char, Mark)], taken_at: Timestamp, one_moment: bool) -> String {
    let kinds: String = marks.iter().map(|(kind, _)| *kind).collect();
    let moment = if one_moment { "one" } else { "several" };
    let head = format!("1.{}.{kinds}.{moment}", taken_at.as_nanosecond());
    let mut hasher = blake3::Hasher::new_derive_key("vbr 2026 snapshot identity");
    hasher.update(head.as_bytes());
    for (_, mark) in marks {
        hasher.update(b"\n");
        match mark.words() {
            Some(words) => hasher.update(words.as_bytes()),
            None => {
                let mut random = [0; 32];
                // Without random bytes the time still tells two snapshots apart.
                let _ = getrandom::fill(&mut random);
                hasher.update(&random).update(&Timestamp::now().as_nanosecond().to_be_bytes())
            }
        };
    }
    format!("{head}.{}", &hasher.finalize().to_hex()[..32])
}

pub(super) fn parse_identity(identity: &str) -> Option<(Timestamp, bool, &str)> {
    let mut parts = identity.split('.');
    let (version, time, kinds, moment) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let taken_at = Timestamp::from_nanosecond(time.parse().ok()?).ok()?;
    let kinds_known = kinds.chars().all(|kind| kind == 'c' || kind == 'w');
    (version == "1" && kinds_known).then_some((taken_at, moment == "one", kinds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_where_anything_does() {
        let mark = |ctime| Mark::File { device: 1, inode: 2, size: 3, mtime: 4, ctime };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let base = identity_of(&[('w', mark(5)), ('c', mark(6))], now, true);
        assert_eq!(base, identity_of(&[('w', mark(5)), ('c', mark(6))], now, true));
        assert_ne!(base, identity_of(&[('w', mark(5)), ('c', mark(7))], now, true));
        assert_ne!(base, identity_of(&[('w', mark(5)), ('c', mark(6))], now, false));
        assert_eq!(parse_identity(&base), Some((now, true, "wc")));
        let doubt = || ('w', Mark::Unprovable { why: String::new() });
        assert_ne!(identity_of(&[doubt()], now, true), identity_of(&[doubt()], now, true));
        for broken in
            ["", "1", "1.x.w.one.00", "2.0.w.one.00", "1.0.z.one.00", "1.99999999999999999999999999.w.one.0"]
        {
            assert_eq!(parse_identity(broken), None, "{broken}");
        }
    }
}
