//! JSON text as vbrd sent it: indented, one line, or cut into a list's items.
//!
//! Works on the text, so that the order of fields and fields this vbrctl does not know yet pass through.
//! Callers hand in text that has been checked to be JSON; on anything else the result is odd but harmless.

/// Indented by two spaces.
pub fn pretty(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0usize;
    let mut tokens = Tokens { rest: text }.peekable();
    while let Some(token) = tokens.next() {
        match token {
            "{" | "[" => {
                out.push_str(token);
                if matches!(tokens.peek(), Some(&"}" | &"]")) {
                    out.push_str(tokens.next().unwrap_or_default());
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            "}" | "]" => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push_str(token);
            }
            "," => {
                out.push(',');
                new_line(&mut out, depth);
            }
            ":" => out.push_str(": "),
            other => out.push_str(other),
        }
    }
    out
}

/// Without white space between tokens: one line.
pub fn compact(text: &str) -> String {
    Tokens { rest: text }.collect()
}

/// The same object with `"schema":1` in front, where it has none.
pub fn with_schema(object: &str) -> String {
    let object = compact(object);
    match object.strip_prefix('{') {
        Some("}") => "{\"schema\":1}".into(),
        Some(rest) if !has_key(&object, "\"schema\"") => format!("{{\"schema\":1,{rest}"),
        _ => object,
    }
}

/// The elements of `"items"` of a list response, each compact.
pub fn items(text: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut depth = 0usize;
    let mut inside = false;
    let mut previous = ["", ""];
    let mut item = String::new();
    for token in (Tokens { rest: text }) {
        let closes = matches!(token, "}" | "]");
        if inside && depth == 2 && (token == "," || token == "]") {
            if !item.is_empty() {
                items.push(std::mem::take(&mut item));
            }
            if token == "]" {
                return items;
            }
            continue;
        }
        if inside {
            item.push_str(token);
        }
        if matches!(token, "{" | "[") {
            inside |= depth == 1 && token == "[" && previous == ["\"items\"", ":"];
            depth += 1;
        } else if closes {
            depth = depth.saturating_sub(1);
        }
        previous = [previous[1], token];
    }
    items
}

fn has_key(object: &str, key: &str) -> bool {
    let mut depth = 0usize;
    let mut last = "";
    for token in (Tokens { rest: object }) {
        match token {
            "{" | "[" => depth += 1,
            "}" | "]" => depth = depth.saturating_sub(1),
            ":" if depth == 1 && last == key => return true,
            _ => {}
        }
        last = token;
    }
    false
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Punctuation, strings with their quotes, and bare words (numbers, true, null).
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let first = *self.rest.as_bytes().first()?;
        let length = match first {
            b'{' | b'}' | b'[' | b']' | b',' | b':' => 1,
            b'"' => string_length(self.rest),
            _ => self
                .rest
                .find(|c: char| c.is_whitespace() || "{}[],:\"".contains(c))
                .unwrap_or(self.rest.len()),
        };
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(token)
    }
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{ "schema": 1, "items":[ {"a":"x,\"]}","b":[1,[2]]}, {"items":[3]} , "é", 4 ], "more":{"items":[9]}}"#;

    #[test]
    fn a_list_is_cut_into_items() {
        assert_eq!(items(LIST), [r#"{"a":"x,\"]}","b":[1,[2]]}"#, r#"{"items":[3]}"#, "\"é\"", "4"]);
        assert!(items(r#"{"schema":1,"items":[]}"#).is_empty());
        assert!(items("{}").is_empty());
        assert!(items("not json [").is_empty());
    }

    #[test]
    fn pretty_and_compact_keep_the_meaning() {
        let value: serde_json::Value = serde_json::from_str(LIST).unwrap();
        for text in [pretty(LIST), compact(LIST)] {
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
        assert_eq!(
            pretty(r#"{"a":[],"b":{},"c":[1]}"#),
            "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1\n  ]\n}"
        );
    }

    #[test]
    fn schema_is_added_once() {
        assert_eq!(with_schema(r#"{"a": {"schema":2}}"#), r#"{"schema":1,"a":{"schema":2}}"#);
        assert_eq!(with_schema(r#"{"schema":1,"a":0}"#), r#"{"schema":1,"a":0}"#);
        assert_eq!(with_schema("{}"), r#"{"schema":1}"#);
    }
}
