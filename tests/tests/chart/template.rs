//! The few parts of Helm's templates that the chart uses: `if`, `else`, `range`, `toJson`, and
//! values.

use std::fmt::Write as _;

use serde_json::Value;

/// A piece of a template.
#[derive(Debug)]
enum Piece<'t> {
    Text(&'t str),
    Action(&'t str),
}

/// Text and actions in turn. `{{-` and `-}}` remove the adjacent white space.
fn pieces(mut template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some((text, rest)) = template.split_once("{{") {
        let (action, after) = rest.split_once("}}").expect("an action that ends");
        let trims_before = action.starts_with('-');
        let trims_after = action.ends_with('-');
        pieces.push(Piece::Text(if trims_before {
            text.trim_end()
        } else {
            text
        }));
        pieces.push(Piece::Action(action.trim_matches('-').trim()));
        template = if trims_after {
            after.trim_start()
        } else {
            after
        };
    }
    pieces.push(Piece::Text(template));
    pieces
}

/// The value of `.a.b`, in the whole or in the present element of a `range`.
fn value<'v>(path: &str, root: &'v Value, dot: &'v Value) -> &'v Value {
    if path == "." {
        return dot;
    }
    let names = path.strip_prefix('.').expect("a path");
    let found = names.split('.').try_fold(root, |at, name| at.get(name));
    found.unwrap_or_else(|| panic!("the values have no {path}"))
}

/// Truth of a value as in Go's templates.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Whether the block at the begin of `rest`, before `left`, has another block for the other case.
fn ends_with_else(rest: &[Piece<'_>], left: &[Piece<'_>]) -> bool {
    let last = rest.len().checked_sub(left.len() + 1).map(|at| &rest[at]);
    matches!(last, Some(Piece::Action("else")))
}

/// Renders until the end of this block; returns the pieces behind the block.
fn render<'p, 't>(
    mut pieces: &'p [Piece<'t>],
    root: &Value,
    dot: &Value,
    out: &mut String,
) -> &'p [Piece<'t>] {
    while let Some((piece, rest)) = pieces.split_first() {
        pieces = rest;
        let action = match piece {
            Piece::Text(text) => {
                out.push_str(text);
                continue;
            }
            Piece::Action(action) => *action,
        };
        let (word, operand) = action.split_once(' ').unwrap_or((action, ""));
        match word {
            "end" | "else" => return pieces,
            "if" => {
                let is_met = is_true(value(operand, root, dot));
                let mut unused = String::new();
                pieces = render(rest, root, dot, if is_met { out } else { &mut unused });
                if ends_with_else(rest, pieces) {
                    pieces = render(pieces, root, dot, if is_met { &mut unused } else { out });
                }
            }
            "range" => {
                let items = value(operand, root, dot).as_array().expect("a list");
                pieces = render(rest, root, dot, &mut String::new());
                for item in items {
                    render(rest, root, item, out);
                }
            }
            "toJson" => {
                // Writing to a string does not fail.
                let _ = write!(out, "{}", value(operand, root, dot));
            }
            "/*" => {}
            path => match value(path, root, dot) {
                Value::String(text) => out.push_str(text),
                other => {
                    let _ = write!(out, "{other}");
                }
            },
        }
    }
    pieces
}

/// A whole template with these values.
pub fn rendered(template: &str, root: &Value) -> String {
    let mut text = String::new();
    let pieces = pieces(template);
    let left = render(&pieces, root, root, &mut text);
    assert!(left.is_empty(), "an end too many");
    text
}

/// Every value that a template names by its path from the root.
pub fn paths(template: &str) -> Vec<&str> {
    let actions = pieces(template)
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Action(action) => action.split(' ').find(|word| word.starts_with(".Values.")),
            Piece::Text(_) => None,
        });
    actions.collect()
}
