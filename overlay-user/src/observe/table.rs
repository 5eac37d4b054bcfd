//! Tables for people: columns aligned by blanks, so that `cut` and `grep` can process the lines.

use comfy_table::{Table, presets};

/// A table with a header line; an empty table consists of the header line.
#[must_use]
pub fn render(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|title| title.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "b".to_owned()],
            vec!["long one".to_owned(), "c".to_owned()],
        ];
        assert_eq!(
            render(&["x", "y"], rows),
            "X         Y\na         b\nlong one  c"
        );
    }
}
