//! Parses commands that an administrator types: `Set-CASMailbox -Identity 'billing@contoso.com' -ImapEnabled $true`.

use std::collections::BTreeMap;

/// A cmdlet with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub name: String,
    parameters: BTreeMap<String, String>,
}

impl Command {
    /// Parses one command. Each parameter has one value, in single or double quotes if it contains spaces.
    pub(super) fn read(line: &str) -> Result<Self, String> {
        let mut words = words(line)?.into_iter();
        let name = words.next().ok_or("there is no command")?;
        let mut parameters = BTreeMap::new();
        while let Some(parameter) = words.next() {
            let flag = parameter.strip_prefix('-').ok_or_else(|| format!("{parameter} is no parameter"))?;
            let value = words.next().ok_or_else(|| format!("-{flag} has no value"))?;
            parameters.insert(flag.to_ascii_lowercase(), value);
        }
        Ok(Self { name, parameters })
    }

    /// Returns a required parameter.
    pub(super) fn value(&self, parameter: &str) -> Result<&str, String> {
        let found = self.optional(parameter);
        found.ok_or_else(|| format!("{}: -{parameter} is missing", self.name))
    }

    pub(super) fn optional(&self, parameter: &str) -> Option<&str> {
        self.parameters.get(&parameter.to_ascii_lowercase()).map(String::as_str)
    }

    /// Returns an optional parameter with the value `$true` or `$false`.
    pub(super) fn switch(&self, parameter: &str) -> Result<Option<bool>, String> {
        match self.optional(parameter) {
            None => Ok(None),
            Some("$true") => Ok(Some(true)),
            Some("$false") => Ok(Some(false)),
            Some(other) => Err(format!("{}: -{parameter} {other} is neither $true nor $false", self.name)),
        }
    }
}

fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (vec![], None::<String>, None);
    for c in line.trim().chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            ('<' | '>' | '|' | ';' | '`', None) => {
                return Err(format!("a command has no {c}: fill in the placeholder"));
            }
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote is left open".to_owned()) } else { Ok(words) }
}
