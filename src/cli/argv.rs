//! Go's way of writing flags, put into the form clap reads.
//!
//! Owns: `-flag`, `-flag=value`, `-flag value`, flags that are on when merely named, and where
//! flags end.
//! Never: knows a flag's meaning; it asks the command's own description.
//! Source: Go documentation, package `flag`, "Command line flag syntax".

use clap::{ArgAction, Command};

/// Gives every on/off flag Go's forms: `-x`, `-x=true`, `-x=0`.
pub(crate) fn go_booleans(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            return arg;
        }
        let default = if arg.get_default_values().iter().any(|value| value == "true") {
            "true"
        } else {
            "false"
        };
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value(default)
            .value_parser(go_bool)
            .hide_default_value(true)
    });
    command.mut_subcommands(go_booleans)
}

pub(crate) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// The only flag of one letter with a value; all commands share it.
const SHORT_WITH_VALUE: &str = "-o";

/// Rewrites `-flag` to `--flag`. Negative numbers stay as they are, and so does what no flag is called
/// once there is an argument: in Go's syntax flags end there, so it is a value (`kv put k -v`).
pub(crate) fn normalise(command: &Command, argv: Vec<String>) -> Vec<String> {
    let mut out = Vec::with_capacity(argv.len());
    let mut input = argv.into_iter();
    out.extend(input.next());
    let mut current = command;
    let mut first = true;
    while let Some(word) = input.next() {
        if word == "--" {
            out.push(word);
            break;
        }
        if !word.starts_with('-') || word == "-" {
            match current.find_subcommand(&word) {
                Some(sub) => current = sub,
                // What follows belongs to the child.
                None if current
                    .get_positionals()
                    .any(clap::Arg::is_trailing_var_arg_set) =>
                {
                    out.extend(["--".to_owned(), word]);
                    break;
                }
                None => first = false,
            }
            out.push(word);
            continue;
        }
        let bare = word.trim_start_matches('-');
        let name = bare.split('=').next().unwrap_or(bare);
        if word == SHORT_WITH_VALUE && takes_value(current, SHORT_WITH_VALUE).is_some() {
            // Its value is not the first word of what may be a child's command.
            out.push(word);
            out.extend(input.next());
            continue;
        }
        match takes_value(current, name) {
            // Named as a whole in the error; clap would take it for a bundle of short flags.
            None if first && bare.len() > 1 && bare.parse::<f64>().is_err() => {
                out.push(format!("--{bare}"));
            }
            None => out.push(word),
            Some(true) if !bare.contains('=') => match input.next() {
                // Joined, so that a value which begins with a dash is not taken for a flag.
                Some(value) => out.push(format!("--{bare}={value}")),
                None => out.push(format!("--{bare}")),
            },
            Some(_) => out.push(format!("--{bare}")),
        }
    }
    out.extend(input);
    out
}

/// Whether the flag `name` needs a value; `None`: there is no such flag.
fn takes_value(command: &Command, name: &str) -> Option<bool> {
    if name == "help" {
        return Some(false);
    }
    let known = |arg: &&clap::Arg| {
        let short = arg.get_short().map(|letter| format!("-{letter}"));
        arg.get_long() == Some(name)
            || short.as_deref() == Some(name)
            || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
    };
    let arg = command.get_arguments().find(known)?;
    Some(!arg.is_require_equals_set() && arg.get_action().takes_values())
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let kv = Command::new("kv").subcommand(
            Command::new("put")
                .arg(
                    Arg::new("recurse")
                        .long("recurse")
                        .action(ArgAction::SetTrue),
                )
                .arg(Arg::new("token").long("token").alias("tok"))
                .arg(Arg::new("words").num_args(0..)),
        );
        let lock = Command::new("lock")
            .arg(Arg::new("n").long("n"))
            .arg(Arg::new("output").short('o').long("output"))
            .arg(Arg::new("child").num_args(0..).trailing_var_arg(true));
        go_booleans(Command::new("weft").subcommand(kv).subcommand(lock))
    }

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let argv = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(normalise(&command(), argv).join(" "), expected, "{line}");
    }

    #[test]
    fn flags_get_two_dashes_and_nothing_else_changes() {
        check("weft kv put -recurse a b", "weft kv put --recurse a b");
        check(
            "weft kv put --recurse=false a",
            "weft kv put --recurse=false a",
        );
        check("weft kv put -token abc k v", "weft kv put --token=abc k v");
        check(
            "weft kv put -token -abc k v",
            "weft kv put --token=-abc k v",
        );
        check("weft kv put -tok=x k", "weft kv put --tok=x k");
        check("weft kv put k -5", "weft kv put k -5");
        check("weft kv put k -value", "weft kv put k -value");
        check("weft kv put -value k", "weft kv put --value k");
        check("weft kv put -5 k", "weft kv put -5 k");
        check("weft kv put k -", "weft kv put k -");
        check("weft kv put -- -recurse", "weft kv put -- -recurse");
        check("weft -h", "weft -h");
        check("weft kv put -help", "weft kv put --help");
    }

    #[test]
    fn a_childs_flags_are_its_own() {
        check(
            "weft lock -n 3 prefix ls -n 5",
            "weft lock --n=3 -- prefix ls -n 5",
        );
        check(
            "weft lock -o json prefix ls -o wide",
            "weft lock -o json -- prefix ls -o wide",
        );
        check(
            "weft lock -n=3 prefix -- ls",
            "weft lock --n=3 -- prefix -- ls",
        );
    }

    #[test]
    fn on_off_flags_take_gos_words() {
        for (word, expected) in [
            ("--recurse", true),
            ("--recurse=1", true),
            ("--recurse=F", false),
        ] {
            let matches = command()
                .try_get_matches_from(["weft", "kv", "put", word])
                .unwrap();
            let (_, kv) = matches.subcommand().unwrap();
            let (_, put) = kv.subcommand().unwrap();
            assert_eq!(put.get_one::<bool>("recurse"), Some(&expected), "{word}");
        }
        assert!(
            command()
                .try_get_matches_from(["weft", "kv", "put", "--recurse=maybe"])
                .is_err()
        );
    }
}
