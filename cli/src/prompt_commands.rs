//! The commands of the prompt: lines that begin with a backslash.

/// The commands, and what each does.
pub(crate) const COMMANDS: [(&str, &str); 7] = [
    ("\\?", "list these commands"),
    ("\\d", "list tables"),
    ("\\d NAME", "list the columns of a table, or the tables of a schema"),
    ("\\df [PATTERN]", "list functions, those like a pattern such as sqnr%"),
    ("\\timing [on|off]", "show how long each statement takes"),
    ("\\x [on|off]", "show each row as lines of names and values"),
    ("\\q", "leave; so do quit, exit and Ctrl-D"),
];

/// A command of the prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Help,
    Describe(Option<&'a str>),
    Functions(Option<&'a str>),
    Timing(Option<bool>),
    Expanded(Option<bool>),
    Leave,
    /// An unknown command, with the message to print.
    Refused(String),
}

impl<'a> Command<'a> {
    /// The command of a line; `None` if it is the beginning of a statement.
    pub(crate) fn of(line: &'a str) -> Option<Self> {
        let line = line.trim().trim_end_matches(';').trim_end();
        if matches!(line, "quit" | "exit") {
            return Some(Self::Leave);
        }
        let command = line.strip_prefix('\\')?;
        let (name, argument) = match command.split_once(char::is_whitespace) {
            Some((name, argument)) => (name, Some(argument.trim())),
            None => (command, None),
        };
        let switch = |of: fn(Option<bool>) -> Self| match argument {
            None => of(None),
            Some("on") => of(Some(true)),
            Some("off") => of(Some(false)),
            Some(other) => Self::Refused(format!("\\{name} is '{other}', allowed: on, off or nothing to change it")),
        };
        Some(match (name, argument) {
            ("?", None) => Self::Help,
            ("q", None) => Self::Leave,
            ("d", table) => Self::Describe(table),
            ("df", pattern) => Self::Functions(pattern),
            ("timing", _) => switch(Self::Timing),
            ("x", _) => switch(Self::Expanded),
            ("?" | "q", Some(_)) => Self::Refused(format!("\\{name} takes no argument")),
            _ => {
                let names = COMMANDS.map(|(name, _)| name);
                Self::Refused(format!("there is no command \\{name}, allowed: {}", names.join(", ")))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_commands() {
        for (line, command) in [
            ("\\q", Command::Leave),
            (" exit; ", Command::Leave),
            ("\\?", Command::Help),
            ("\\d", Command::Describe(None)),
            ("\\d m.tensors;", Command::Describe(Some("m.tensors"))),
            ("\\df sq%", Command::Functions(Some("sq%"))),
            ("\\x", Command::Expanded(None)),
            ("\\timing off", Command::Timing(Some(false))),
        ] {
            assert_eq!(Command::of(line), Some(command), "{line}");
        }
        for statement in ["exit x", "SELECT 1;", "SELECT '\\q';"] {
            assert_eq!(Command::of(statement), None, "{statement}");
        }
    }

    #[test]
    fn an_unknown_command_is_refused_with_the_list() {
        let Some(Command::Refused(message)) = Command::of("\\foo bar") else { panic!("it was taken") };
        assert!(message.starts_with("there is no command \\foo, allowed: \\?, \\d, "), "{message}");
        assert!(COMMANDS.iter().all(|(name, _)| message.contains(name)));
        assert!(matches!(Command::of("\\x maybe"), Some(Command::Refused(_))));
    }
}
