//! Checks that everything that the pages name exists: tests by their names, commands by clap, files
//! and headings in the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use overlay_common::schema::ABI_VERSION;
use overlay_tests::hostile::Kind;

use crate::{Arguments, workspace};

/// The directories with tests.
const SOURCES: [&str; 5] = [
    "overlay-common",
    "overlay-ebpf",
    "overlay-user",
    "tests",
    "xtask",
];
/// Names of the kernel's that look like names of tests.
const KERNELS: [&str; 3] = [
    "bpf_ktime_get_coarse_ns",
    "nf_conntrack_tcp_be_liberal",
    "nf_conntrack_tcp_loose",
];
/// Number of underscores by which a name counts as a test's.
const SENTENCE: usize = 3;

/// The pages, with their names: those in `docs` and at the root.
fn pages() -> Vec<(PathBuf, String)> {
    let root = workspace::root();
    [root.join("docs"), root.to_owned()]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).expect("a directory of pages"))
        .map(|entry| entry.expect("an entry of a directory of pages").path())
        .filter(|path| path.extension().is_some_and(|it| it == "md"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a page");
            (path, text)
        })
        .collect()
}

/// The texts between backticks in a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_name(span: &str) -> bool {
    span.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Every file of Rust below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests, and of their modules and programs.
struct Names {
    tests: BTreeSet<String>,
    places: BTreeSet<String>,
}

impl Names {
    fn collect() -> Self {
        let mut files = Vec::new();
        for directory in SOURCES {
            sources(&workspace::root().join(directory), &mut files);
        }
        let (mut tests, mut places) = (BTreeSet::new(), BTreeSet::new());
        for path in files {
            let stem = path.file_stem().expect("a name").to_string_lossy();
            let directory = path.parent().and_then(Path::file_name).expect("a parent");
            places.extend([stem.into_owned(), directory.to_string_lossy().into_owned()]);
            let text = fs::read_to_string(&path).expect("a source");
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                marked |= line == "#[test]";
                if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
                    let name = rest.split('(').next().unwrap_or_default();
                    tests.insert(name.to_owned());
                    marked = false;
                }
            }
        }
        Self { tests, places }
    }

    /// Whether a name in a column of tests exists.
    fn knows(&self, span: &str) -> bool {
        if let Some(end) = span.strip_prefix('…') {
            return self.tests.iter().any(|test| test.ends_with(end));
        }
        if Kind::ALL.iter().any(|kind| kind.name() == span) {
            return true;
        }
        let parts: Vec<&str> = span.split("::").collect();
        let is_place = |part: &&str| self.places.contains(*part);
        parts.split_last().is_some_and(|(last, before)| {
            before.iter().all(is_place) && (self.tests.contains(*last) || is_place(last))
        })
    }
}

/// The last cells of tables whose last column is called `test`.
fn column_of_tests(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_in_one = false;
    for line in text.lines() {
        let Some(row) = line.strip_suffix('|') else {
            is_in_one = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap_or_default().trim();
        if is_in_one {
            found.push(last);
        }
        is_in_one |= last == "test";
    }
    found
}

#[test]
fn every_test_that_a_page_names_exists() {
    let names = Names::collect();
    assert!(names.tests.len() > 100, "{} tests found", names.tests.len());
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        for line in text.lines() {
            for span in spans(line) {
                let is_sentence = is_name(span) && span.matches('_').count() >= SENTENCE;
                if is_sentence && !names.tests.contains(span) && !KERNELS.contains(&span) {
                    wrong.push(format!("{}: no test {span}", path.display()));
                }
            }
        }
        for cell in column_of_tests(&text) {
            let unknown = spans(cell).filter(|span| !names.knows(span));
            wrong.extend(unknown.map(|span| format!("{}: what is {span}?", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The commands of a page: in spans and in blocks of code.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            // Further columns have the command's purpose.
            let command = line.trim().split("  ").next().unwrap_or_default();
            commands.push(command.split(" #").next().unwrap_or_default().to_owned());
        } else {
            commands.extend(spans(line).map(str::to_owned));
        }
    }
    commands.retain(|command| command.starts_with("cargo xtask"));
    commands
}

/// clap's error for a command, if any.
fn refusal(command: &str) -> Option<clap::Error> {
    // The part after `&&` is another command of the shell.
    let command = command.split(" && ").next().unwrap_or_default();
    let words = command.split_whitespace().skip(1);
    // A word in capitals is a placeholder.
    let is_form = (command.split(' '))
        .any(|word| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase()));
    let error = Arguments::try_parse_from(words).err()?;
    let is_taken = error.kind() == ErrorKind::DisplayHelp
        || is_form && error.kind() == ErrorKind::InvalidValue;
    (!is_taken).then_some(error)
}

#[test]
fn every_command_that_a_page_names_is_taken() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        for command in commands(&text) {
            count += 1;
            let refused = refusal(&command);
            wrong.extend(refused.map(|why| format!("{}: `{command}`: {why}", path.display())));
        }
    }
    assert!(count > 10, "{count} commands found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The examples at the end of the help of a command and of its subcommands.
fn examples(command: &clap::Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string);
    let own = help.map(|help| commands(&format!("```\n{help}")));
    let below = command.get_subcommands().flat_map(examples);
    own.into_iter().flatten().chain(below).collect()
}

#[test]
fn every_example_of_a_help_is_taken() {
    let examples = examples(&Arguments::command());
    assert!(examples.len() > 10, "{examples:?}");
    let wrong = examples.iter().filter_map(|example| {
        let why = refusal(example)?;
        Some(format!("`{example}`: {why}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The targets of a page's links, except those outside of the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://"))
}

/// The anchors of a page's headings: lower case, hyphens for spaces, no punctuation.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        });
        kept.collect()
    })
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        for link in links(&text) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("a directory").join(file),
            };
            let is_there = match anchor {
                "" => target.exists(),
                anchor => fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).any(|name| name == anchor)),
            };
            if !is_there {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(count > 10, "{count} links found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Directories of the repository whose files pages name.
const NAMED: [&str; 7] = [
    "deploy/",
    "docs/",
    "overlay-common/",
    "overlay-ebpf/",
    "overlay-user/",
    "tests/",
    "xtask/",
];

#[test]
fn every_file_that_a_page_names_exists() {
    let root = workspace::root();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        for span in text.lines().flat_map(spans) {
            // NAME is a placeholder.
            let is_file = NAMED.iter().any(|start| span.starts_with(start))
                && !span.contains("NAME")
                && !span.contains(' ');
            if is_file {
                count += 1;
                if !root.join(span).exists() {
                    wrong.push(format!("{}: no {span}", path.display()));
                }
            }
        }
    }
    assert!(count > 30, "{count} files found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The versions in paths of pinned things: `/sys/fs/bpf/overlay/v4/…`.
fn versions(text: &str) -> impl Iterator<Item = u32> {
    let paths = text.split("/sys/fs/bpf/overlay/v").skip(1);
    paths.filter_map(|rest| {
        let end = rest.find(|it: char| !it.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    })
}

#[test]
fn pages_name_the_directory_of_this_abi() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        // The changelog also names earlier versions.
        if path.ends_with("CHANGELOG.md") {
            continue;
        }
        for version in versions(&text) {
            count += 1;
            if version != ABI_VERSION {
                wrong.push(format!(
                    "{}: v{version}, but ABI_VERSION is {ABI_VERSION}",
                    path.display()
                ));
            }
        }
    }
    assert!(count > 0, "no page names the directory of pinned maps");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Most columns of a line of Rust, and of a line of prose in a page.
const COLUMNS: (usize, usize) = (100, 120);

/// The numbers of the lines of a page's prose, which excludes tables, blocks of code and text
/// without blanks.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_in_block = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_in_block ^= is_fence;
        let is_divided = !line.starts_with('`') || !line.ends_with('`');
        !is_fence && !is_in_block && !line.starts_with('|') && is_divided
    })
}

#[test]
fn no_line_is_longer_than_the_style_allows() {
    let mut files = Vec::new();
    for directory in SOURCES {
        sources(&workspace::root().join(directory), &mut files);
    }
    let sources = files.into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("a source");
        (path, text)
    });
    let mut wrong = Vec::new();
    for (path, text) in sources {
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > COLUMNS.0 {
                wrong.push(format!("{}:{number}", path.display()));
            }
        }
    }
    for (path, text) in pages() {
        for (number, line) in prose(&text) {
            if line.chars().count() > COLUMNS.1 {
                wrong.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "too long:\n{}", wrong.join("\n"));
}
