//! Text tables: aligned columns, numbers to the right, no colours.

use std::io::{self, Write};

/// The most tensors a report lists; the rest is counted.
pub(crate) const LISTED: usize = 40;

/// Characters that are shown of a name.
const LONGEST_NAME: usize = 120;

/// A column's name and side.
struct Column {
    name: String,
    right: bool,
}

/// Rows of cells, printed with every column as wide as its widest cell. A cell may have several lines.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without columns.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With a column of text.
    pub(crate) fn text(self, name: &str) -> Self {
        self.column(name, false)
    }

    /// With a column of numbers.
    pub(crate) fn number(self, name: &str) -> Self {
        self.column(name, true)
    }

    /// With a column aligned to the right, or else to the left.
    pub(crate) fn column(mut self, name: &str, right: bool) -> Self {
        self.columns.push(Column { name: clean(name.to_string()), right });
        self
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Prints names, a rule and the rows.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let mut widths: Vec<usize> = names.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        self.write_row(&names, &widths, out)?;
        self.write_row(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>(), &widths, out)?;
        for row in &self.rows {
            self.write_row(row, &widths, out)?;
        }
        Ok(())
    }

    /// Prints a row, on as many lines as its highest cell has.
    fn write_row(&self, cells: &[String], widths: &[usize], out: &mut impl Write) -> io::Result<()> {
        let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
        for index in 0..height {
            let mut line = String::new();
            for ((cell, &width), column) in cells.iter().zip(widths).zip(&self.columns) {
                let part = cell.lines().nth(index).unwrap_or("");
                line += &if column.right { format!("{part:>width$}") } else { format!("{part:<width$}") };
                line += "  ";
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints named values, one a line.
pub(crate) fn write_facts(facts: &[(&str, String)], out: &mut impl Write) -> io::Result<()> {
    let widest = facts.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    for (name, value) in facts {
        writeln!(out, "{name:<widest$}  {}", clean(value.clone()))?;
    }
    Ok(())
}

/// A tensor's name within its model.
pub(crate) fn tensor_label(component: &str, tensor: &str) -> String {
    // A line end in a name would let a file write lines of the report, and a long one make all lines as long.
    let shown = |name: &str| {
        let name = name.replace(char::is_control, "\u{fffd}");
        match name.char_indices().nth(LONGEST_NAME) {
            Some((end, _)) => format!("{}…", &name[..end]),
            None => name,
        }
    };
    match component {
        "" => shown(tensor),
        component => format!("{}/{}", shown(component), shown(tensor)),
    }
}

/// Characters of the longest line.
fn width(cell: &str) -> usize {
    cell.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Names come from files: a control character is shown, not sent to the terminal. Line ends stay.
pub(crate) fn clean(cell: String) -> String {
    let harmless = |c: char| c == '\n' || !c.is_control();
    if cell.chars().all(harmless) {
        return cell;
    }
    cell.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: &Table) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_to_the_left_and_numbers_to_the_right() {
        let mut table = Table::new().text("tensor").number("bits");
        table.row(["blocks.0".to_string(), "4".to_string()]);
        table.row(["norm".to_string(), "16".to_string()]);
        assert_eq!(printed(&table), "tensor    bits\n--------  ----\nblocks.0     4\nnorm        16\n");
    }

    #[test]
    fn cells_of_several_lines_and_control_characters() {
        let mut table = Table::new().text("a").text("b");
        table.row(["x\ny".to_string(), "\x1b[1m".to_string()]);
        assert_eq!(printed(&table), "a  b\n-  ---------\nx  \\u{1b}[1m\ny\n");
    }

    #[test]
    fn a_label_has_its_component() {
        assert_eq!(tensor_label("", "norm"), "norm");
        assert_eq!(tensor_label("unet", "norm"), "unet/norm");
        assert_eq!(tensor_label("", &"é".repeat(500)), "é".repeat(120) + "…");
    }
}
