//! Flags that several commands take.

use clap::ValueEnum;

/// How to show a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// How the packet programs are fuzzed: `cargo xtask fuzz` takes it and passes it on to
/// `overlay-fuzz`.
#[derive(Clone, Debug, clap::Args)]
pub struct Fuzz {
    /// How long.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub seconds: u64,
    /// Where chance starts; told at the end, and different every time without this.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// How many programs' copies at a time, each with maps of its own.
    #[arg(long, value_name = "J", default_value_t = 1)]
    pub jobs: usize,
    /// A table for people, or JSON for scripts.
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
}

impl Fuzz {
    /// The same as words of a command line.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("--seconds={}", self.seconds),
            format!("--jobs={}", self.jobs),
        ];
        words.extend(self.seed.map(|seed| format!("--seed={seed}")));
        if self.output == Output::Json {
            words.push("--output=json".to_owned());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        fuzz: Fuzz,
    }

    #[test]
    fn what_is_passed_on_is_what_was_said() {
        let words = [
            "fuzz",
            "--seconds=7",
            "--jobs=2",
            "--seed=9",
            "--output=json",
        ];
        let first = Command::parse_from(words).fuzz;
        let passed_on = [vec!["fuzz".to_owned()], first.words()].concat();
        let second = Command::parse_from(passed_on).fuzz;
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!((second.seconds, second.seed), (7, Some(9)));
    }
}
