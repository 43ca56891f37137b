//! Text tables: aligned columns, numbers to the right, no colours, no wider than the terminal.

use std::io::{self, IsTerminal, Write};

use console::{Term, measure_text_width};

/// The most tensors a report lists; the rest is counted.
pub(crate) const LISTED: usize = 40;

/// Characters that are shown of a name.
const LONGEST_NAME: usize = 120;

/// Spaces between two columns.
const GAP: usize = 2;

/// The least that a terminal is taken to have: narrower ones break lines.
const NARROWEST: usize = 20;

/// Characters that a terminal's line has; `None` where lines have no end, such as in files and pipes. `COLUMNS` says it for both.
pub(crate) fn terminal_width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.trim().parse().ok()).filter(|&width| width > 0);
    let found = || {
        let (_, columns) = Term::stdout().size_checked().filter(|_| io::stdout().is_terminal())?;
        Some(usize::from(columns)).filter(|&width| width > 0)
    };
    told.or_else(found).map(|width: usize| width.max(NARROWEST))
}

/// How a column gets narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// It does not: part of a number would be another number.
    Never,
    /// The end is left out, and this many characters stay at least.
    End(usize),
    /// The middle is left out, and this many characters stay at least: names are alike at their start.
    Middle(usize),
}

impl Cut {
    /// What a column of this width is at least.
    fn least(self, width: usize) -> usize {
        match self {
            Self::Never => width,
            Self::End(least) | Self::Middle(least) => width.min(least),
        }
    }

    /// A line of a cell in so many characters.
    fn apply(self, line: &str, width: usize) -> String {
        if self == Self::Never || measure_text_width(line) <= width {
            return line.to_string();
        }
        let room = width.saturating_sub(1);
        let kept_at_end = match self {
            Self::Never | Self::End(_) => 0,
            Self::Middle(_) => room - room / 3,
        };
        let start = beginning(line.chars(), room - kept_at_end);
        let end: String = beginning(line.chars().rev(), kept_at_end).chars().rev().collect();
        format!("{start}…{end}")
    }
}

/// The first characters that take no more than this width.
fn beginning(characters: impl Iterator<Item = char>, width: usize) -> String {
    let (mut text, mut room) = (String::new(), width);
    for character in characters {
        let Some(rest) = room.checked_sub(measure_text_width(character.encode_utf8(&mut [0; 4]))) else { break };
        room = rest;
        text.push(character);
    }
    text
}

/// A column's name, side, and how it gets narrower.
struct Column {
    name: String,
    right: bool,
    cut: Cut,
}

/// Rows of cells, printed with every column as wide as its widest cell, as far as the terminal has room. A cell may have
/// several lines.
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

    /// With a column of names, which are told apart by their ends.
    pub(crate) fn names(self, name: &str) -> Self {
        self.with(name, false, Cut::Middle(28))
    }

    /// With a column of numbers.
    pub(crate) fn number(self, name: &str) -> Self {
        self.column(name, true)
    }

    /// With a column aligned to the right, or else to the left.
    pub(crate) fn column(self, name: &str, right: bool) -> Self {
        self.with(name, right, if right { Cut::Never } else { Cut::End(12) })
    }

    fn with(mut self, name: &str, right: bool, cut: Cut) -> Self {
        self.columns.push(Column { name: clean(name.to_string()), right, cut });
        self
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Prints names, a rule and the rows, on a terminal in its width.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_within(terminal_width(), out)
    }

    /// The same in lines of this width, if they have an end. Columns that have no room are left out, the last first, and named.
    pub(crate) fn write_within(&self, limit: Option<usize>, out: &mut impl Write) -> io::Result<()> {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let mut widths: Vec<usize> = names.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        if let Some(limit) = limit {
            self.fit(&mut widths, limit);
        }
        self.write_row(&names, &widths, out)?;
        self.write_row(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>(), &widths, out)?;
        for row in &self.rows {
            self.write_row(row, &widths, out)?;
        }
        if widths.len() < names.len() {
            writeln!(out, "left out in this width: {}", names[widths.len()..].join(", "))?;
        }
        Ok(())
    }

    /// Makes columns narrower until they have room: the widest first, and what has none at all is left out.
    fn fit(&self, widths: &mut Vec<usize>, limit: usize) {
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let least = |widths: &[usize]| -> Vec<usize> {
            widths.iter().zip(&self.columns).map(|(&width, column)| column.cut.least(width)).collect()
        };
        while widths.len() > 1 && total(&least(widths)) > limit {
            widths.pop();
        }
        let least = least(widths);
        while let Some(over) = total(widths).checked_sub(limit).filter(|&over| over > 0) {
            // The widest is cut to the second widest, or by what is left to cut.
            let open = || widths.iter().zip(&least).enumerate().filter(|(_, (width, least))| width > least);
            let Some((widest, (&width, &floor))) = open().max_by_key(|(_, (width, _))| **width) else { return };
            let second = open().filter(|(index, _)| *index != widest).map(|(_, (width, _))| *width).max();
            let step = second.map_or(over, |second| over.min((width - second).max(1)));
            widths[widest] = width.saturating_sub(step).max(floor);
        }
    }

    /// Prints a row, on as many lines as its highest cell has.
    fn write_row(&self, cells: &[String], widths: &[usize], out: &mut impl Write) -> io::Result<()> {
        let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
        for index in 0..height {
            let mut line = String::new();
            for ((cell, &width), column) in cells.iter().zip(widths).zip(&self.columns) {
                let part = column.cut.apply(cell.lines().nth(index).unwrap_or(""), width);
                // By hand: the formatter takes no width beyond 65,535.
                let padding = " ".repeat(width.saturating_sub(measure_text_width(&part)));
                line += &if column.right { padding + &part } else { part + &padding };
                line.push_str(&" ".repeat(GAP));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Prints each row as lines of names and values.
    pub(crate) fn write_expanded(&self, first: usize, out: &mut impl Write) -> io::Result<()> {
        let widest = self.columns.iter().map(|column| width(&column.name)).max().unwrap_or(0);
        for (index, row) in self.rows.iter().enumerate() {
            writeln!(out, "-[ row {} ]{}", first + index, "-".repeat(widest))?;
            for (column, cell) in self.columns.iter().zip(row) {
                let mut lines = cell.lines();
                let padding = " ".repeat(widest - width(&column.name));
                writeln!(out, "{}", format!("{}{padding}  {}", column.name, lines.next().unwrap_or("")).trim_end())?;
                for line in lines {
                    writeln!(out, "{}  {line}", " ".repeat(widest))?;
                }
            }
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
    cell.lines().map(measure_text_width).max().unwrap_or(0)
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
        within(table, None)
    }

    fn within(table: &Table, limit: Option<usize>) -> String {
        let mut out = Vec::new();
        table.write_within(limit, &mut out).unwrap();
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
    fn names_are_cut_and_figures_are_not() {
        let mut table = Table::new().names("tensor").number("SQNR dB").number("cosine").text("shape");
        let name = "model.diffusion_model.double_blocks.11.img_attn.qkv.weight";
        table.row([name.to_string(), "20.61".to_string(), "0.996097".to_string(), "[16, 128]".to_string()]);
        let text = within(&table, Some(70));
        assert!(text.lines().all(|line| line.chars().count() <= 70), "{text}");
        assert!(text.contains("…") && text.contains("img_attn.qkv.weight    20.61  0.996097  [16, 128]"), "{text}");
        // What has no room at all is left out, and said.
        let text = within(&table, Some(50));
        assert!(text.lines().all(|line| line.chars().count() <= 50), "{text}");
        assert!(text.contains("0.996097\n") && text.ends_with("left out in this width: shape\n"), "{text}");
        assert!(within(&table, None).contains(name));
    }

    #[test]
    fn wide_characters_take_two_places() {
        let mut table = Table::new().text("a").number("b");
        table.row(["重み".to_string(), "1".to_string()]);
        table.row(["abcd".to_string(), "2".to_string()]);
        assert_eq!(printed(&table), "a     b\n----  -\n重み  1\nabcd  2\n");
        assert_eq!(Cut::End(1).apply("重み重み", 4), "重…");
    }

    #[test]
    fn a_cell_may_be_of_any_width() {
        let mut table = Table::new().text("a");
        table.row(["x".repeat(70_000)]);
        assert_eq!(printed(&table).lines().last().unwrap().len(), 70_000);
        assert_eq!(within(&table, Some(80)).lines().last().unwrap().chars().count(), 80);
    }

    #[test]
    fn rows_one_below_the_other() {
        let mut table = Table::new().text("name").number("n");
        table.row(["a\nb".to_string(), "1".to_string()]);
        let mut out = Vec::new();
        table.write_expanded(3, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "-[ row 3 ]----\nname  a\n      b\nn     1\n");
    }

    #[test]
    fn a_label_has_its_component() {
        assert_eq!(tensor_label("", "norm"), "norm");
        assert_eq!(tensor_label("unet", "norm"), "unet/norm");
        assert_eq!(tensor_label("", &"é".repeat(500)), "é".repeat(120) + "…");
    }
}
