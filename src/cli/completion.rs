//! `weft completion`, and Consul's `-autocomplete-install` and `-autocomplete-uninstall`.
//!
//! Owns: where shells look for the completions of one user.
//! Never: edits a file a user has written; completions are files of their own.

use std::path::{Path, PathBuf};

use clap_complete::Shell;

use super::failure::{Done, Exit, Failure};
use super::output;

/// Shells whose completions are installed.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Print the completions for a shell
#[derive(clap::Args)]
#[command(
    after_help = "weft -autocomplete-install writes them where each shell looks for those of one user.\n\n\
                  Examples:\n  weft completion bash > weft.bash\n  weft completion fish > weft.fish"
)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Known,
}

/// The shells there are completions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

impl From<Known> for Shell {
    fn from(shell: Known) -> Self {
        match shell {
            Known::Bash => Self::Bash,
            Known::Zsh => Self::Zsh,
            Known::Fish => Self::Fish,
        }
    }
}

pub(crate) fn run(args: CompletionArgs) -> Done {
    output::bytes(&script(args.shell.into()))
}

fn script(shell: Shell) -> Vec<u8> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "weft", &mut out);
    out
}

/// What stands alone on the line in Consul's CLI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autocomplete {
    Install,
    Uninstall,
}

impl Autocomplete {
    pub(crate) fn asked(argv: &[String]) -> Option<Self> {
        let [_, only] = argv else { return None };
        match only.trim_start_matches('-') {
            "autocomplete-install" if only.starts_with('-') => Some(Self::Install),
            "autocomplete-uninstall" if only.starts_with('-') => Some(Self::Uninstall),
            _ => None,
        }
    }

    pub(crate) fn perform(self) -> Done {
        let homes = Homes::of(&|name| std::env::var_os(name).map(PathBuf::from))?;
        for shell in SHELLS {
            let path = homes.path(shell);
            match self {
                Self::Install => {
                    write(&path, &script(shell))?;
                    output::line(format!("Wrote {}", path.display()))?;
                }
                Self::Uninstall => {
                    if remove(&path)? {
                        output::line(format!("Removed {}", path.display()))?;
                    }
                }
            }
        }
        if self == Self::Install {
            let functions = homes.data.join("zsh/site-functions");
            crate::stderr::note!(
                "zsh needs this in .zshrc, before compinit: fpath+=({})",
                functions.display()
            );
        }
        Ok(())
    }
}

/// Where a user's own data and configuration are.
struct Homes {
    data: PathBuf,
    config: PathBuf,
}

impl Homes {
    fn of(env: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Self, Failure> {
        let home = env("HOME").filter(|home| home.is_absolute());
        let under = |name: &str, below: &str| {
            let named = env(name).filter(|path| path.is_absolute());
            named.or_else(|| home.as_ref().map(|home| home.join(below)))
        };
        match (
            under("XDG_DATA_HOME", ".local/share"),
            under("XDG_CONFIG_HOME", ".config"),
        ) {
            (Some(data), Some(config)) => Ok(Self { data, config }),
            _ => Err(Failure::new(
                Exit::Negative,
                "HOME is not set, so it is not known where to",
            )
            .hint("weft completion SHELL prints the completions")),
        }
    }

    fn path(&self, shell: Shell) -> PathBuf {
        match shell {
            Shell::Zsh => self.data.join("zsh/site-functions/_weft"),
            Shell::Fish => self.config.join("fish/completions/weft.fish"),
            _ => self.data.join("bash-completion/completions/weft"),
        }
    }
}

fn write(path: &Path, script: &[u8]) -> Done {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, script))
        .map_err(|error| failed("write", path, &error))
}

/// Whether it was there.
fn remove(path: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path, &error)),
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Negative,
        format!("cannot {what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_completed_in_every_shell() {
        for shell in SHELLS {
            let script = String::from_utf8(script(shell)).unwrap();
            for verb in super::super::command().get_subcommands() {
                assert!(
                    script.contains(verb.get_name()),
                    "{shell}: {}",
                    verb.get_name()
                );
            }
            assert!(script.contains("http-addr"), "{shell}");
        }
    }

    #[test]
    fn files_go_where_shells_look() {
        let homes = Homes::of(&|name| match name {
            "HOME" => Some("/h".into()),
            "XDG_CONFIG_HOME" => Some("/c".into()),
            _ => None,
        });
        let homes = homes.unwrap();
        let paths = SHELLS.map(|shell| homes.path(shell).display().to_string());
        let expected = [
            "/h/.local/share/bash-completion/completions/weft",
            "/h/.local/share/zsh/site-functions/_weft",
            "/c/fish/completions/weft.fish",
        ];
        assert_eq!(paths, expected);
        assert!(Homes::of(&|_| None).is_err());
    }

    #[test]
    fn consuls_flags_stand_alone() {
        let asked = |line: &str| {
            let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Autocomplete::asked(&argv)
        };
        assert_eq!(
            asked("weft -autocomplete-install"),
            Some(Autocomplete::Install)
        );
        assert_eq!(
            asked("weft --autocomplete-uninstall"),
            Some(Autocomplete::Uninstall)
        );
        assert_eq!(asked("weft autocomplete-install"), None);
        assert_eq!(asked("weft kv -autocomplete-install"), None);
    }
}
