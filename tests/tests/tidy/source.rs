//! Just enough reading of Rust for the rules: text without comments and strings, tests cut off,
//! functions and their lengths.

/// One Rust file.
pub struct Source {
    /// Its path inside the repository.
    pub name: String,
    /// As written.
    pub text: String,
    /// The same lines with comments, strings, characters and tests blanked out.
    product: String,
}

/// A function and how long it is, signature included.
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

impl Source {
    pub fn new(name: String, text: &str) -> Self {
        Self { name, text: text.to_owned(), product: without_tests(&blank(text)) }
    }

    /// Test files are tests as a whole: `tests.rs`, `tests_mount.rs`, `source_tests.rs`, whole suites.
    pub fn is_test_file(&self) -> bool {
        let stem = self.name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        let inside = |dir| self.name.contains(dir);
        let suite = inside("/tests/") || inside("/tests_mount/");
        let suite = suite && !self.name.starts_with("tests/src/");
        suite || stem == "tests" || stem.starts_with("tests_") || stem.ends_with("_tests")
    }

    /// Lines up to the last that is no test.
    pub fn lines_without_tests(&self) -> usize {
        self.code_without_tests().lines().count()
    }

    /// Code with everything under `#[cfg(test)]` blanked out.
    pub fn code_without_tests(&self) -> &str {
        &self.product
    }
}

/// Blanks the items that `#[cfg(test)]` stands before, and cuts what is blank at the end.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(at) = rest.find(MARK) {
        let item = &rest[at + MARK.len()..];
        let end = body_end(item).unwrap_or_else(|| item.find(';').unwrap_or(item.len().saturating_sub(1)));
        out.push_str(&rest[..at]);
        out.extend(item[..=end].chars().filter(|c| *c == '\n'));
        rest = &item[end + 1..];
    }
    out.push_str(rest);
    out.truncate(out.trim_end().len());
    out
}

/// Functions outside tests; nested ones count for themselves and for the outer one.
pub fn functions(source: &Source) -> Vec<Function> {
    let code = source.code_without_tests();
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = at.checked_sub(1).map(|i| bytes[i]);
        if before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue;
        }
        let Some(end) = body_end(&code[at..]) else { continue };
        let line = code[..at].matches('\n').count() + 1;
        found.push(Function { name, line, lines: code[at..at + end].matches('\n').count() + 1 });
    }
    found
}

/// Where the body that begins after this signature ends; none for a declaration without one.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut nested = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' if depth == 0 => nested += 1,
            ')' | ']' if depth == 0 => nested = nested.saturating_sub(1),
            ';' if depth == 0 && nested == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Blanks comments, strings and characters; keeps every line break.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if raw_hashes(&chars, at).is_some() => raw_end(&chars, at),
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
}

fn comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0usize, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `r"`, `r#"`, …; none where the `r` belongs to a word or no string follows.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    if at > 0 && (chars[at - 1].is_alphanumeric() && chars[at - 1] != 'b' || chars[at - 1] == '_') {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_end(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or(0);
    let mut i = at + hashes + 2;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

/// A character literal; a lifetime is left alone.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => chars[at + 2..].iter().skip(1).position(|c| *c == '\'').map_or(at, |n| at + 4 + n),
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}
