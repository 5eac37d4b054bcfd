//! Command lines and environments written for flanneld: Go's `flag` package accepts one dash as
//! well as two and has truth values of its own, and an empty environment variable counts as unset.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::Command;

/// Adds a second dash to each long flag of `command` (and of its sub-commands) that has one:
/// `-iface=eth0` becomes `--iface=eth0`. All other arguments, and all that follow `--`, stay
/// unchanged.
pub fn double_dashes(command: &Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut longs: Vec<&str> = vec!["help", "version"];
    gather(command, &mut longs);
    let mut flags = true;
    args.into_iter()
        .map(|arg| {
            flags &= arg != OsStr::new("--");
            if flags && is_single_dashed(arg.as_bytes(), &longs) {
                OsString::from_vec([b"-", arg.as_bytes()].concat())
            } else {
                arg
            }
        })
        .collect()
}

/// Treats empty environment variables as unset, in `command` and its sub-commands.
pub fn ignore_empty_env(command: Command) -> Command {
    forget_env(command, &|name| {
        env::var_os(name).is_some_and(|value| value.is_empty())
    })
}

/// Reads a truth value as Go's `strconv.ParseBool` does.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("want true or false".to_owned()),
    }
}

fn forget_env(command: Command, unwanted: &dyn Fn(&OsStr) -> bool) -> Command {
    command
        .mut_args(|arg| {
            if arg.get_env().is_some_and(unwanted) {
                arg.env(None)
            } else {
                arg
            }
        })
        .mut_subcommands(|sub| forget_env(sub, unwanted))
}

fn gather<'a>(command: &'a Command, longs: &mut Vec<&'a str>) {
    longs.extend(command.get_arguments().filter_map(clap::Arg::get_long));
    command.get_subcommands().for_each(|sub| gather(sub, longs));
}

fn is_single_dashed(arg: &[u8], longs: &[&str]) -> bool {
    let Some(flag) = arg.strip_prefix(b"-") else {
        return false;
    };
    let name = flag.split(|byte| *byte == b'=').next().unwrap_or_default();
    longs.iter().any(|long| long.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn an_environment_variable_with_something_in_it_counts() {
        let command = Command::new("x").arg(Arg::new("path").long("path").env("PATH"));
        let command = ignore_empty_env(command);
        let arg = command.get_arguments().next().expect("an argument");
        assert_eq!(arg.get_env(), Some(OsStr::new("PATH")));
    }

    #[test]
    fn known_flags_get_their_second_dash() {
        let command = Command::new("x")
            .arg(Arg::new("iface").long("iface"))
            .arg(Arg::new("out").short('o').long("output"))
            .subcommand(Command::new("y").arg(Arg::new("deep").long("deep")));
        let args = [
            "x",
            "-iface=eth0",
            "-iface",
            "e1",
            "--iface=e2",
            "-o",
            "json",
            "-deep",
            "-odd",
            "-help",
            "--",
            "-iface",
        ];
        let normal = double_dashes(&command, args.map(OsString::from));
        let want = [
            "x",
            "--iface=eth0",
            "--iface",
            "e1",
            "--iface=e2",
            "-o",
            "json",
            "--deep",
            "-odd",
            "--help",
            "--",
            "-iface",
        ];
        assert_eq!(normal, want.map(OsString::from));
    }

    #[test]
    fn an_unwanted_variable_is_not_read() {
        let command = || {
            let path = || Arg::new("path").long("path").env("PATH");
            Command::new("x")
                .arg(path())
                .subcommand(Command::new("y").arg(path()))
        };
        let path = |command: Command, args: &[&str]| {
            let matches = command.try_get_matches_from(args).expect("parsed");
            let matches = matches.subcommand_matches("y").unwrap_or(&matches).clone();
            matches.get_one::<String>("path").cloned()
        };
        for args in [&["x"][..], &["x", "y"]] {
            assert!(path(command(), args).is_some());
            assert_eq!(
                path(forget_env(command(), &|name| name == "PATH"), args),
                None
            );
        }
    }
}
