//! How an order names a replica or a restore point: `[SITE/]REPLICA` and `[SITE/]REPLICA@ID|latest`.

use std::fmt;

use crate::error::Problem;

/// `[SITE/]REPLICA`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRef {
    /// The source site; must be said where two sites have a replica of the same name.
    pub site: Option<String>,
    /// The replica's name within its site.
    pub name: String,
}

/// `[SITE/]REPLICA@ID`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRef {
    /// The replica.
    pub replica: ReplicaRef,
    /// A point's id, or `latest`.
    pub point: String,
}

impl ReplicaRef {
    /// Checks the names; whether the replica exists is for the repository to say.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let (site, name) = match text.split_once('/') {
            Some((site, name)) => (Some(site), name),
            None => (None, text),
        };
        if site.is_some_and(|site| !vbr_api::name_is_valid(site)) || !vbr_api::name_is_valid(name) {
            return Err(Problem::invalid(
                format!("replica \"{text}\""),
                "that is no name of a replica",
                "write REPLICA or SITE/REPLICA; `vbrctl replica list` shows them",
            ));
        }
        Ok(Self { site: site.map(str::to_owned), name: name.to_owned() })
    }
}

impl PointRef {
    /// Checks the names; whether the point exists is for the repository to say.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let fault = || {
            Problem::invalid(
                format!("restore point \"{text}\""),
                "that is no name of a restore point",
                "write REPLICA@ID or REPLICA@latest; `vbrctl restore-point list REPLICA` shows them",
            )
        };
        let (replica, point) = text.rsplit_once('@').ok_or_else(fault)?;
        if !vbr_api::name_is_valid(point) {
            return Err(fault());
        }
        Ok(Self { replica: ReplicaRef::parse(replica).map_err(|_| fault())?, point: point.to_owned() })
    }
}

impl fmt::Display for ReplicaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            Some(site) => write!(f, "{site}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl fmt::Display for PointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.replica, self.point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points() {
        for (text, site, name, point) in [
            ("web@latest", None, "web", "latest"),
            ("b1/web@20261122t190501z-3fa2", Some("b1"), "web", "20261122t190501z-3fa2"),
        ] {
            let parsed = PointRef::parse(text).expect(text);
            assert_eq!(parsed.replica.site.as_deref(), site);
            assert_eq!((parsed.replica.name.as_str(), parsed.point.as_str()), (name, point));
            assert_eq!(parsed.to_string(), text);
        }
        for bad in [
            "",
            "web",
            "@latest",
            "web@",
            "../x@latest",
            "a/b/c@latest",
            "web@../../etc",
            "/web@latest",
            "a@b@c",
        ] {
            assert!(PointRef::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "/", "a/", "/a", "..", "a/..", "A"] {
            assert_eq!(ReplicaRef::parse(bad).expect_err(bad).code, "invalid");
        }
    }
}
