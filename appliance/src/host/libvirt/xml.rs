//! Reading the XML that libvirt prints: elements, attributes, text. Pure.
//!
//! No document types, no external anything. Bounds: [`DEPTH_MAX`]; the text itself is bounded by whoever read it.

/// Elements inside each other.
const DEPTH_MAX: usize = 64;

/// An element with what is in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub name: String,
    attributes: Vec<(String, String)>,
    pub text: String,
    children: Vec<Element>,
}

impl Element {
    /// The one element of a document.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut open = vec![Self::default()];
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            let (before, markup) = rest.split_at(at);
            let Some(depth) = open.len().checked_sub(1) else { break };
            open[depth].text += &unescape(before)?;
            rest = if let Some(after) = markup.strip_prefix("<!--") {
                past(after, "-->")?
            } else if let Some(after) = markup.strip_prefix("<?") {
                past(after, "?>")?
            } else if let Some(after) = markup.strip_prefix("</") {
                let (name, after) = after.split_once('>').ok_or("a tag without an end")?;
                let closed = open.pop().filter(|element| element.name == name.trim_end());
                let (closed, parent) =
                    closed.zip(open.last_mut()).ok_or(format!("</{name}> closes nothing"))?;
                parent.children.push(closed);
                after
            } else if markup.starts_with("<!") {
                return Err("a declaration".into());
            } else {
                let (element, is_empty, after) = tag(&markup[1..])?;
                if is_empty {
                    open[depth].children.push(element);
                } else if open.len() > DEPTH_MAX {
                    return Err(format!("more than {DEPTH_MAX} elements inside each other"));
                } else {
                    open.push(element);
                }
                after
            };
        }
        let document = open.pop().filter(|_| open.is_empty()).ok_or("an element without an end")?;
        let mut elements = document.children.into_iter();
        elements.next().filter(|_| elements.next().is_none()).ok_or_else(|| "not one element".into())
    }

    /// The first of this name inside.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All of this name inside.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn past<'a>(text: &'a str, end: &str) -> Result<&'a str, String> {
    text.split_once(end).map(|(_, after)| after).ok_or_else(|| format!("no {end}"))
}

/// A tag after its `<`: the element, whether it has no inside, and what follows.
fn tag(text: &str) -> Result<(Element, bool, &str), String> {
    let end = text.find(|c: char| c.is_whitespace() || c == '/' || c == '>').ok_or("a tag without an end")?;
    let (name, mut rest) = text.split_at(end);
    if name.is_empty() {
        return Err("a tag without a name".into());
    }
    let mut element = Element { name: name.into(), ..Element::default() };
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("/>") {
            return Ok((element, true, after));
        }
        if let Some(after) = rest.strip_prefix('>') {
            return Ok((element, false, after));
        }
        let (key, after) = rest.split_once('=').ok_or("an attribute without a value")?;
        let after = after.trim_start();
        let quote =
            after.chars().next().filter(|c| *c == '"' || *c == '\'').ok_or("a value without quotes")?;
        let (value, after) = after[1..].split_once(quote).ok_or("a value without an end")?;
        element.attributes.push((key.trim().into(), unescape(value)?));
        rest = after;
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        let (name, after) = after.split_once(';').ok_or("a reference without an end")?;
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        let character = match name {
            "lt" => Some('<'),
            "gt" => Some('>'),
            "amp" => Some('&'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => match name.strip_prefix("#x") {
                Some(digits) => number(digits, 16),
                None => name.strip_prefix('#').and_then(|digits| number(digits, 10)),
            },
        };
        out.push_str(before);
        out.push(character.ok_or_else(|| format!("&{name}; is not known"))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A value as it stands between quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_libvirt_prints_is_read() {
        let text = "<?xml version='1.0'?>\n<!-- <x> --><domain type='kvm' id=\"3\"><name>a&amp;b&#33;</name>\
                    <devices><disk device='disk'><source file='/x &quot;y&quot;'/></disk><disk /></devices></domain>\n";
        let domain = Element::parse(text).unwrap();
        assert_eq!((domain.name.as_str(), domain.attribute("id")), ("domain", Some("3")));
        assert_eq!(domain.child("name").unwrap().text, "a&b!");
        let disks: Vec<_> = domain.child("devices").unwrap().all("disk").collect();
        assert_eq!(disks.len(), 2);
        assert_eq!(disks[0].child("source").unwrap().attribute("file"), Some("/x \"y\""));
        assert!(disks[1].attribute("device").is_none() && disks[1].child("source").is_none());
    }

    #[test]
    fn what_is_broken_is_refused() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        for text in [
            "",
            "<",
            "<a",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            "<a b/>",
            "<a b=c/>",
            "<a b='c/>",
            "<a>&no;</a>",
            "<a>&amp</a>",
            "<!DOCTYPE a><a/>",
            "<!-- <a/>",
            "</a></a>",
            "< a/>",
            &deep,
        ] {
            assert!(Element::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[<>/a&;='\"! ?-]{0,60}") {
            let _ = Element::parse(&text);
        }

        #[test]
        fn values_come_back(value in "\\PC{0,40}") {
            let parsed = Element::parse(&format!("<a b='{}'/>", escape(&value))).unwrap();
            prop_assert_eq!(parsed.attribute("b"), Some(value.as_str()));
        }
    }
}
