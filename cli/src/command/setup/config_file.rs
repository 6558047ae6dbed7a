//! Sets keys in a configuration file that a person may have written: in place, with its comments.
//!
//! The file is ours and fully commented: a key that is there as a comment is uncommented where it stands, one that is set is
//! replaced, anything else is added. Proven, not hoped: what the file says before and after is compared as TOML, and must
//! differ in these keys alone; otherwise a section of its own goes to the end, and where that does not fit either the file
//! is refused. Pure: text in, text out.

use toml::{Table, Value};

/// A key and what it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// `["datastore", "default", "path"]`
    pub path: Vec<&'static str>,
    pub value: Value,
}

impl Setting {
    pub fn new(path: &[&'static str], value: impl Into<Value>) -> Self {
        Self { path: path.to_vec(), value: value.into() }
    }

    fn key(&self) -> &'static str {
        self.path.last().copied().unwrap_or_default()
    }

    fn section(&self) -> String {
        self.path[..self.path.len().saturating_sub(1)].join(".")
    }

    /// `datastore.default.path`
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    fn line(&self) -> String {
        format!("{} = {}", self.key(), self.value)
    }
}

/// What a key is in a file; none where it is not set.
pub fn get(text: &str, path: &[&str]) -> Option<Value> {
    let table: Table = toml::from_str(text).ok()?;
    let mut value = Value::Table(table);
    for part in path {
        value = value.get(part)?.clone();
    }
    Some(value)
}

/// The file with these settings, or why it cannot be changed.
pub fn apply(text: &str, settings: &[Setting]) -> Result<String, String> {
    let mut text = text.to_owned();
    for setting in settings {
        text = set(&text, setting)?;
    }
    Ok(text)
}

fn set(text: &str, setting: &Setting) -> Result<String, String> {
    let before: Table = toml::from_str(text).map_err(|error| one_line(&error.to_string()))?;
    let mut wanted = before.clone();
    insert(&mut wanted, &setting.path, setting.value.clone())?;
    if wanted == before {
        return Ok(text.to_owned());
    }
    let lines: Vec<&str> = text.lines().collect();
    let tries = [in_place(&lines, setting), Some(at_the_end(&lines, setting))];
    for lines in tries.into_iter().flatten() {
        let new = lines.join("\n") + "\n";
        if toml::from_str::<Table>(&new).is_ok_and(|after| after == wanted) {
            return Ok(new);
        }
    }
    Err(format!("{} cannot be set without changing something else in it", setting.name()))
}

fn insert(table: &mut Table, path: &[&str], value: Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else { return Ok(()) };
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return Ok(());
    }
    let below = table.entry((*first).to_owned()).or_insert_with(|| Value::Table(Table::new()));
    match below {
        Value::Table(below) => insert(below, rest, value),
        _ => Err(format!("{first} is no section in it")),
    }
}

/// Where a section begins and ends.
struct Section {
    /// The line of its name.
    head: usize,
    /// That line is a comment.
    is_comment: bool,
    /// The line after its last.
    end: usize,
}

/// `[wire]` -> `wire`; also of a comment, `#[wire]`.
fn head(line: &str) -> Option<(String, bool)> {
    let bare = line.trim();
    let (bare, is_comment) = bare.strip_prefix('#').map_or((bare, false), |bare| (bare, true));
    let inner = bare.strip_prefix('[')?.split(']').next()?;
    let is_name = !inner.starts_with('[') && !inner.is_empty();
    let rest = bare[inner.len() + 2..].trim();
    (is_name && (rest.is_empty() || rest.starts_with('#'))).then(|| (inner.replace('"', ""), is_comment))
}

fn find(lines: &[&str], name: &str) -> Option<Section> {
    let heads: Vec<(usize, String, bool)> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| head(line).map(|(name, comment)| (at, name, comment)))
        .collect();
    let of = |wanted: bool| heads.iter().find(|(_, head, comment)| head == name && *comment == wanted);
    let (head, _, is_comment) = of(false).or_else(|| of(true))?;
    let end = heads.iter().map(|(at, ..)| *at).find(|at| at > head).unwrap_or(lines.len());
    Some(Section { head: *head, is_comment: *is_comment, end })
}

fn in_place(lines: &[&str], setting: &Setting) -> Option<Vec<String>> {
    let section = find(lines, &setting.section())?;
    let mut new: Vec<String> = lines.iter().map(ToString::to_string).collect();
    let inside = section.head + 1..section.end;
    let key_of = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let set = inside.clone().find(|at| key_of(lines[*at]).as_deref() == Some(setting.key()));
    let comment = inside.clone().find(|at| {
        let bare = lines[*at].trim_start().strip_prefix('#');
        bare.and_then(key_of).as_deref() == Some(setting.key())
    });
    match (set, comment) {
        (Some(at), _) => {
            new.splice(at..value_end(lines, at), [setting.line()]);
        }
        (None, Some(at)) => new[at] = setting.line(),
        (None, None) => new.insert(section.head + 1, setting.line()),
    }
    if section.is_comment {
        new[section.head] = lines[section.head].trim_start().trim_start_matches('#').to_owned();
    }
    Some(new)
}

/// A list may go over several lines.
fn value_end(lines: &[&str], from: usize) -> usize {
    let whole =
        (from + 1..=lines.len()).find(|end| toml::from_str::<Table>(&lines[from..*end].join("\n")).is_ok());
    whole.unwrap_or(from + 1)
}

fn at_the_end(lines: &[&str], setting: &Setting) -> Vec<String> {
    let mut new: Vec<String> = lines.iter().map(ToString::to_string).collect();
    if new.last().is_some_and(|line| !line.trim().is_empty()) {
        new.push(String::new());
    }
    new.push(format!("[{}]", setting.section()));
    new.push(setting.line());
    new
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGED: &str = include_str!("../../../../packaging/etc/vbrd.toml");

    fn all() -> Vec<Setting> {
        vec![
            Setting::new(&["site", "name"], "branch-7"),
            Setting::new(&["wire", "listen"], vec!["/ip4/0.0.0.0/tcp/7301"]),
            Setting::new(&["datastore", "default", "path"], "/srv/replicas"),
            Setting::new(&["cache", "size"], "20GiB"),
            Setting::new(&["source", "snapshot_dirs"], vec!["/srv/vm/.vbr"]),
        ]
    }

    #[test]
    fn the_packaged_file_keeps_its_comments_and_its_order() {
        let new = apply(PACKAGED, &all()).unwrap();
        let differing: Vec<(&str, &str)> =
            PACKAGED.lines().zip(new.lines()).filter(|(a, b)| a != b).collect();
        let expected = [
            ("#name = \"branch1\"", "name = \"branch-7\""),
            ("#listen = [\"/ip4/0.0.0.0/tcp/7300\"]", "listen = [\"/ip4/0.0.0.0/tcp/7301\"]"),
            ("#[datastore.default]", "[datastore.default]"),
            ("#path = \"/var/lib/vbr/datastore\"", "path = \"/srv/replicas\""),
            ("#size = \"10GiB\"", "size = \"20GiB\""),
            ("#snapshot_dirs = [\"/srv/images/.vbr\"]", "snapshot_dirs = [\"/srv/vm/.vbr\"]"),
        ];
        assert_eq!(differing, expected);
        assert_eq!(new.lines().count(), PACKAGED.lines().count());
        assert_eq!(apply(&new, &all()).unwrap(), new, "a second time changes nothing");
        assert_eq!(get(&new, &["cache", "size"]), Some("20GiB".into()));
    }

    #[test]
    fn what_is_set_is_replaced_and_what_is_missing_added() {
        let text = "# mine\n[wire]\nlisten = [\n  \"/ip4/10.0.0.1/tcp/7300\", # inner\n]\nrate = \"5Mbit\"\n";
        let new = apply(text, &all()).unwrap();
        assert!(
            new.starts_with("# mine\n[wire]\nlisten = [\"/ip4/0.0.0.0/tcp/7301\"]\nrate = \"5Mbit\"\n"),
            "{new}"
        );
        assert!(
            new.contains("\n[site]\nname = \"branch-7\"\n") && new.contains("[datastore.default]\npath"),
            "{new}"
        );
        assert_eq!(apply("", &all()[..1]).unwrap(), "[site]\nname = \"branch-7\"\n");
        // A key that stands in another section is not taken for ours.
        let text = "[cache]\n#path = \"/a\"\n#[datastore.default]\n[source]\nsnapshot_floor = \"2GiB\"\n";
        let new = apply(text, &all()[2..3]).unwrap();
        assert!(new.contains("#path = \"/a\"") && new.contains("[datastore.default]\npath"), "{new}");
    }

    #[test]
    fn a_head_that_would_take_in_other_keys_stays_a_comment() {
        let text = "[wire]\n#[datastore.default]\n#path = \"/x\"\nrate = \"5Mbit\"\n";
        let new = apply(text, &all()[2..3]).unwrap();
        assert_eq!(get(&new, &["wire", "rate"]), Some("5Mbit".into()));
        assert_eq!(get(&new, &["datastore", "default", "path"]), Some("/srv/replicas".into()));
    }

    #[test]
    fn what_cannot_be_understood_is_left_alone() {
        assert!(apply("[wire\n", &all()).is_err());
        assert!(apply("site = 3\n", &all()).unwrap_err().contains("no section"));
        assert!(apply("datastore = { fast = { path = \"/x\" } }\n", &all()[2..3]).is_err());
    }
}
