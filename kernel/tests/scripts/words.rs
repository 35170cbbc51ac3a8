//! The words of a command.

use std::collections::BTreeMap;

/// The words of a command, with `name=value` ones set apart.
pub struct Words<'a> {
    pub plain: Vec<&'a str>,
    pub named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    pub fn of(text: &'a str, names: &[&str]) -> Self {
        let mut words = Self { plain: Vec::new(), named: BTreeMap::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) if names.contains(&name) => {
                    words.named.insert(name, value);
                }
                _ => words.plain.push(word),
            }
        }
        words
    }

    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.named.get(name).map_or(default, |value| value.parse().expect("a number"))
    }
}

/// A number behind a letter that says what it is of, or alone.
pub fn number(word: Option<&&str>) -> Option<u64> {
    word.map(|word| word.trim_start_matches(['q', 'e', 'a']).parse().expect("a number"))
}
