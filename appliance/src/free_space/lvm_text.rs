//! The text of LVM2 metadata: `name { key = value }`, values are numbers, strings and lists of both.
//!
//! Bounds: eight levels, 262,144 values; a name that occurs twice in a section is refused.

use std::collections::BTreeMap;

use super::{Keep, keep, require};

const LEVELS_MAX: usize = 8;
const VALUES_MAX: usize = 1 << 18;
const BAD: &str = "the LVM metadata cannot be read";

/// A value; a list may hold both kinds.
#[derive(Debug)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// What stands between a pair of braces.
#[derive(Debug, Default)]
pub(super) struct Section(BTreeMap<String, Value>);

impl Section {
    /// The sections in here.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// A section in here.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.0.get(name) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        }
    }

    /// A number in here.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A string in here.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// True where a list of words holds none but these; a missing list holds none.
    pub(super) fn is_only(&self, name: &str, known: &[&str]) -> bool {
        match self.0.get(name) {
            None => true,
            Some(Value::List(words)) => {
                words.iter().all(|word| matches!(word, Value::Text(word) if known.contains(&word.as_str())))
            }
            Some(_) => false,
        }
    }

    /// True where a list of words holds this one.
    pub(super) fn has(&self, name: &str, word: &str) -> bool {
        matches!(self.0.get(name), Some(Value::List(words))
            if words.iter().any(|value| matches!(value, Value::Text(text) if text == word)))
    }

    /// The one stripe of a linear segment: the physical volume and its first extent.
    pub(super) fn stripe(&self) -> Option<(&str, u64)> {
        match self.0.get("stripes") {
            Some(Value::List(list)) => match list.as_slice() {
                [Value::Text(name), Value::Number(from)] => Some((name, *from)),
                _ => None,
            },
            _ => None,
        }
    }

    /// True where any string in here, at any depth, is this word.
    pub(super) fn mentions(&self, word: &str) -> bool {
        self.0.values().any(|value| value.mentions(word))
    }
}

impl Value {
    fn mentions(&self, word: &str) -> bool {
        match self {
            Value::Number(_) => false,
            Value::Text(text) => text == word,
            Value::List(values) => values.iter().any(|value| value.mentions(word)),
            Value::Section(section) => section.mentions(word),
        }
    }
}

/// Reads the whole text.
pub(super) fn parse(text: &[u8]) -> Result<Section, Keep> {
    // The stored text ends with a zero.
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(text) else { return keep(BAD) };
    let mut reader = Reader { rest: text, values: 0 };
    let root = reader.section(0)?;
    require(reader.rest.is_empty(), BAD)?;
    Ok(root)
}

struct Reader<'a> {
    rest: &'a str,
    values: usize,
}

impl<'a> Reader<'a> {
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    /// Takes this mark if it is next.
    fn take(&mut self, mark: char) -> bool {
        self.skip();
        self.rest.strip_prefix(mark).is_some_and(|rest| {
            self.rest = rest;
            true
        })
    }

    fn word(&mut self) -> Result<&'a str, Keep> {
        self.skip();
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.+/".contains(c);
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        require(!word.is_empty(), BAD)?;
        self.rest = rest;
        Ok(word)
    }

    fn section(&mut self, level: usize) -> Result<Section, Keep> {
        require(level < LEVELS_MAX, BAD)?;
        let mut section = Section::default();
        loop {
            self.skip();
            if self.rest.is_empty() {
                require(level == 0, BAD)?;
                return Ok(section);
            }
            if self.take('}') {
                require(level > 0, BAD)?;
                return Ok(section);
            }
            let name = self.word()?.to_owned();
            let value = if self.take('{') {
                Value::Section(self.section(level + 1)?)
            } else {
                require(self.take('='), BAD)?;
                self.value(level)?
            };
            require(section.0.insert(name, value).is_none(), BAD)?;
        }
    }

    fn value(&mut self, level: usize) -> Result<Value, Keep> {
        self.values += 1;
        require(self.values <= VALUES_MAX && level < LEVELS_MAX, BAD)?;
        if self.take('"') {
            return self.string();
        }
        if self.take('[') {
            let mut list = Vec::new();
            while !self.take(']') {
                list.push(self.value(level + 1)?);
                if !self.take(',') {
                    require(self.take(']'), BAD)?;
                    break;
                }
            }
            return Ok(Value::List(list));
        }
        let word = self.word()?;
        // Negative numbers and fractions are none of the numbers that are looked for.
        Ok(word.parse().map_or_else(|_| Value::Text(word.to_owned()), Value::Number))
    }

    fn string(&mut self) -> Result<Value, Keep> {
        let (mut text, mut escaped) = (String::new(), false);
        for (at, c) in self.rest.char_indices() {
            match (c, escaped) {
                ('\\', false) => escaped = true,
                ('"', false) => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Value::Text(text));
                }
                _ => {
                    text.push(c);
                    escaped = false;
                }
            }
        }
        keep(BAD)
    }
}
