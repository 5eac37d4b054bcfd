//! Command lines written for flanneld: Go's `flag` package takes one dash as well as two.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::Command;

/// Gives each long flag of `command` (and of its sub-commands) that comes with one dash its second one:
/// `-iface=eth0` becomes `--iface=eth0`. Anything else, and all that follows `--`, stays as it is.
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
}
