//! Licence expressions of SPDX: `A OR (B AND C WITH D)`, and `A/B` as crates wrote it formerly. Pure.

use anyhow::{Result, bail};

/// Splits an expression into words and brackets.
fn words(expression: &str) -> Vec<String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// True where the licences in `allowed` are enough; an error where it is no expression.
pub fn is_allowed(expression: &str, allowed: &[String]) -> Result<bool> {
    let words = words(expression);
    let mut parser = Parser { words: &words, at: 0, allowed };
    let verdict = parser.any()?;
    if parser.at < words.len() {
        bail!("\"{expression}\" is no licence expression: {:?} is too much", words[parser.at]);
    }
    Ok(verdict)
}

struct Parser<'a> {
    words: &'a [String],
    at: usize,
    allowed: &'a [String],
}

impl Parser<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn take(&mut self, word: &str) -> bool {
        let is = self.peek() == Some(word);
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<bool> {
        let mut verdict = self.all()?;
        while self.take("OR") {
            verdict |= self.all()?;
        }
        Ok(verdict)
    }

    fn all(&mut self) -> Result<bool> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let verdict = self.any()?;
            if !self.take(")") {
                bail!("a bracket is not closed in {:?}", self.words.join(" "));
            }
            return Ok(verdict);
        }
        let mut name = match self.peek() {
            Some(word) if !matches!(word, ")" | "OR" | "AND" | "WITH") => word.to_owned(),
            _ => bail!("a licence is missing in {:?}", self.words.join(" ")),
        };
        self.at += 1;
        if self.take("WITH") {
            let Some(exception) = self.peek() else { bail!("WITH what, in {:?}", self.words.join(" ")) };
            name = format!("{name} WITH {exception}");
            self.at += 1;
        }
        Ok(self.allowed.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_decided() {
        let allowed: Vec<String> =
            ["MIT", "Apache-2.0", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"].map(String::from).into();
        let decide = |text: &str| is_allowed(text, &allowed).unwrap();
        for good in [
            "MIT",
            "MIT/GPL-3.0-only",
            "MIT / Apache-2.0",
            "GPL-3.0-only OR MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "(MIT OR GPL-3.0-only) AND BSD-3-Clause",
            "MIT AND (Zlib OR Apache-2.0)",
        ] {
            assert!(decide(good), "{good}");
        }
        for bad in [
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MIT WITH Something",
            "(MIT OR GPL-3.0-only) AND Zlib",
            // AND binds tighter.
            "Zlib OR MIT AND GPL-3.0-only",
        ] {
            assert!(!decide(bad), "{bad}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND MIT", "MIT WITH"] {
            assert!(is_allowed(broken, &allowed).is_err(), "{broken}");
        }
    }
}
