//! Which tensors repeat from block to block, found in their names.
//!
//! A number in a name (`model.layers.7.mlp.up_proj`) may count blocks, or experts, or only modules of a sequence
//! (`to_out.0`). It counts blocks if what follows it is much the same for every number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::TensorReport;

/// More rows than this make a stack within blocks, such as experts, a column of its block.
const MAX_NESTED_ROWS: usize = 96;
/// More numbers than this in one place are no names of modules.
const MAX_SEQUENCE: usize = 16;
/// Of a grid that has fewer of its cells than this, a list tells more.
const MIN_FILLED: f64 = 0.2;
/// Modules that two stacks share, of all that they have, to be shown as one grid.
const ALIKE: f64 = 0.5;
/// Nested numbers count blocks only if their modules are this much the same: more than those of T5's `layer.0`
/// (attention) and `layer.1` (feed-forward).
const NESTED_FILLED: f64 = 0.66;

/// Blocks by projection, and what is outside of blocks.
pub(super) struct Blocks<'a> {
    pub(super) grids: Vec<Grid<'a>>,
    pub(super) rest: Vec<&'a TensorReport>,
}

/// Stacks with much the same columns.
pub(super) struct Grid<'a> {
    /// In groups: those with the same first part of the name are neighbours.
    pub(super) columns: Vec<String>,
    pub(super) stacks: Vec<Stack<'a>>,
}

/// Blocks whose names differ in numbers only.
pub(super) struct Stack<'a> {
    /// `model.layers.*`
    pub(super) pattern: String,
    pub(super) rows: Vec<Row<'a>>,
}

/// One block.
pub(super) struct Row<'a> {
    /// `model.layers.7`
    pub(super) name: String,
    /// `7`; `1.0` for `down_blocks.1.attentions.0`.
    pub(super) label: String,
    /// For every column the tensors there: several if experts are one column.
    pub(super) cells: Vec<Vec<&'a TensorReport>>,
}

/// The first part of a column's name, which its neighbours share, and the rest: `self_attn` and `q_proj`.
pub(super) fn split_column(column: &str) -> (&str, &str) {
    let numbers = numbers(column);
    let mut from = 0;
    loop {
        let Some(end) = column[from..].find(['.', '/']).map(|at| from + at) else { return ("", column) };
        match numbers.iter().find(|number| number.start == end + 1 && number.end < column.len()) {
            Some(number) => from = number.end,
            None => return (&column[..end], &column[end + 1..]),
        }
    }
}

/// Sorts tensors into stacks of blocks; numbers in order, everything else as it first appears.
pub(super) fn blocks<'a>(tensors: &[&'a TensorReport]) -> Blocks<'a> {
    let names: Vec<Name> = tensors.iter().map(|tensor| Name::new(tensor)).collect();
    let roles = roles(&names);
    let mut drafts: Vec<Draft> = vec![];
    let mut rest = vec![];
    for name in names {
        let Some(number) = name.block(&roles) else {
            rest.push(name.tensor);
            continue;
        };
        let pattern = name.pattern(number);
        let index = drafts.iter().position(|draft| draft.pattern == pattern).unwrap_or_else(|| {
            drafts.push(Draft { pattern, rows: BTreeMap::new() });
            drafts.len() - 1
        });
        let row = drafts[index].rows.entry(name.key(number)).or_default();
        row.push((name.column(number, &roles), name.tensor));
    }
    let (grids, lists): (Vec<_>, Vec<_>) = alike(drafts).into_iter().partition(|grid| is_grid(grid));
    let listed = lists.into_iter().flatten().flat_map(|draft| draft.rows.into_values().flatten());
    rest.extend(listed.map(|(_, tensor)| tensor));
    Blocks { grids: grids.into_iter().map(grid).collect(), rest }
}

/// A stack before its columns are in order.
struct Draft<'a> {
    pattern: String,
    rows: BTreeMap<Key, Vec<(String, &'a TensorReport)>>,
}

impl Draft<'_> {
    fn columns(&self) -> BTreeSet<String> {
        self.rows.values().flatten().map(|(column, _)| column.clone()).collect()
    }
}

/// Orders blocks by their numbers, digit by digit: the length of each number, its digits, and the block's name.
type Key = (Vec<(usize, String)>, String);

/// Puts stacks together whose columns are much the same as those of the first.
fn alike(drafts: Vec<Draft>) -> Vec<Vec<Draft>> {
    let mut grids: Vec<(BTreeSet<String>, Vec<Draft>)> = vec![];
    for draft in drafts {
        let columns = draft.columns();
        match grids.iter_mut().find(|(first, _)| overlap(first, &columns) >= ALIKE) {
            Some((_, grid)) => grid.push(draft),
            None => grids.push((columns, vec![draft])),
        }
    }
    grids.into_iter().map(|(_, grid)| grid).collect()
}

fn is_grid(stacks: &[Draft]) -> bool {
    let columns: BTreeSet<String> = stacks.iter().flat_map(Draft::columns).collect();
    let rows: Vec<_> = stacks.iter().flat_map(|stack| stack.rows.values()).collect();
    let filled: usize =
        rows.iter().map(|row| row.iter().map(|(column, _)| column).collect::<BTreeSet<_>>().len()).sum();
    columns.len() > 1 && rows.len() > 1 && filled as f64 >= MIN_FILLED * (columns.len() * rows.len()) as f64
}

fn grid(drafts: Vec<Draft>) -> Grid {
    let mut order: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (column, _) in drafts.iter().flat_map(|draft| draft.rows.values()).flatten() {
        let (next, next_group) = (order.len(), groups.len());
        order.entry(column).or_insert(next);
        groups.entry(split_column(column).0).or_insert(next_group);
    }
    let mut columns: Vec<String> = order.keys().map(|column| column.to_string()).collect();
    columns.sort_by_key(|column| (groups.get(split_column(column).0), order.get(column.as_str())));
    let index: BTreeMap<&str, usize> = columns.iter().enumerate().map(|(i, column)| (column.as_str(), i)).collect();
    let stacks = drafts.iter().map(|draft| {
        let rows = draft.rows.iter().map(|((numbers, name), tensors)| {
            let mut cells = vec![vec![]; columns.len()];
            for (column, tensor) in tensors {
                cells[index[column.as_str()]].push(*tensor);
            }
            let label = numbers.iter().map(|(_, digits)| digits.as_str()).collect::<Vec<_>>().join(".");
            Row { name: name.clone(), label, cells }
        });
        Stack { pattern: draft.pattern.clone(), rows: rows.collect() }
    });
    let stacks = stacks.collect();
    Grid { columns, stacks }
}

/// Of all members of either set, the share that is in both.
fn overlap(a: &BTreeSet<String>, b: &BTreeSet<String>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// A tensor and where its name has numbers.
struct Name<'a> {
    tensor: &'a TensorReport,
    text: &'a str,
    numbers: Vec<Range<usize>>,
}

impl<'a> Name<'a> {
    fn new(tensor: &'a TensorReport) -> Self {
        Self { tensor, text: &tensor.tensor, numbers: numbers(&tensor.tensor) }
    }

    /// The name up to a number, `*` in place of all numbers.
    fn pattern(&self, number: usize) -> String {
        self.starred(0..self.numbers[number].end, |_| true)
    }

    /// What follows a number, `*` in place of all numbers.
    fn module(&self, number: usize) -> String {
        module(&self.starred(self.numbers[number].end..self.text.len(), |_| true)).to_string()
    }

    /// What follows a number, `*` in place of those that count experts and the like.
    fn column(&self, number: usize, roles: &BTreeMap<String, Role>) -> String {
        let pooled = |inner: usize| roles.get(&self.pattern(inner)) == Some(&Role::Pool);
        module(&self.starred(self.numbers[number].end..self.text.len(), pooled)).to_string()
    }

    fn starred(&self, range: Range<usize>, replace: impl Fn(usize) -> bool) -> String {
        let mut text = String::with_capacity(range.len());
        let mut from = range.start;
        for (index, number) in self.numbers.iter().enumerate() {
            if number.start >= range.start && number.end <= range.end && replace(index) {
                text.push_str(&self.text[from..number.start]);
                text.push('*');
                from = number.end;
            }
        }
        text.push_str(&self.text[from..range.end]);
        text
    }

    /// The number that is the tensor's block.
    fn block(&self, roles: &BTreeMap<String, Role>) -> Option<usize> {
        let roles = (0..self.numbers.len()).map(|number| (number, roles.get(&self.pattern(number))));
        let above_pools = roles.take_while(|(_, role)| *role != Some(&Role::Pool));
        above_pools.filter(|(_, role)| *role == Some(&Role::Block)).last().map(|(number, _)| number)
    }

    fn key(&self, number: usize) -> Key {
        let digits = self.numbers[..=number].iter().map(|range| (range.len(), self.text[range.clone()].to_string()));
        (digits.collect(), self.text[..self.numbers[number].end].to_string())
    }
}

fn module(rest: &str) -> &str {
    let rest = rest.trim_start_matches(['.', '/']);
    rest.strip_suffix(".weight").unwrap_or(rest)
}

/// Numbers that are a part of a name by themselves, `layers.7.mlp`, or end one, `layer_7/kernel`.
fn numbers(name: &str) -> Vec<Range<usize>> {
    let bytes = name.as_bytes();
    let mut found = vec![];
    let mut at = 0;
    while at < bytes.len() {
        let end = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let starts = at == 0 || matches!(bytes[at - 1], b'.' | b'/' | b'_');
        if end > at && starts && matches!(bytes.get(end), None | Some(b'.' | b'/')) {
            found.push(at..end);
        }
        at = end.max(at + 1);
    }
    found
}

/// What the numbers in one place of the names are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// Each is a row.
    Block,
    /// Too many for rows or columns: all are in one cell.
    Pool,
    /// A part of a name.
    Part,
}

/// What is known of the numbers in one place of the names.
#[derive(Default)]
struct Place<'a> {
    numbers: BTreeSet<&'a str>,
    modules: BTreeSet<String>,
    pairs: BTreeSet<(&'a str, String)>,
    rows: BTreeSet<&'a str>,
}

impl Place<'_> {
    fn role(&self, nested: bool) -> Role {
        let all = self.numbers.len() * self.modules.len();
        // Outermost blocks may differ (attention here, convolution there), if some module repeats.
        let repeats = match nested {
            true => self.pairs.len() as f64 >= NESTED_FILLED * all as f64,
            false => self.pairs.len() > self.modules.len(),
        };
        let blocks = self.numbers.len() > 1 && self.modules.len() > 1 && repeats;
        match blocks {
            true if !nested || self.rows.len() <= MAX_NESTED_ROWS => Role::Block,
            false if self.numbers.len() <= MAX_SEQUENCE => Role::Part,
            _ => Role::Pool,
        }
    }
}

/// The role of every place where names have a number, by the pattern up to there.
fn roles(names: &[Name]) -> BTreeMap<String, Role> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for name in names {
        for (index, range) in name.numbers.iter().enumerate() {
            let (number, module) = (&name.text[range.clone()], name.module(index));
            let place = places.entry(name.pattern(index)).or_default();
            place.numbers.insert(number);
            place.rows.insert(&name.text[..range.end]);
            place.pairs.insert((number, module.clone()));
            place.modules.insert(module);
        }
    }
    let role = |(pattern, place): (&String, &Place)| {
        (pattern.clone(), place.role(pattern.bytes().filter(|byte| *byte == b'*').count() > 1))
    };
    let mut roles: BTreeMap<String, Role> = places.iter().map(role).collect();
    // A single block made like those of a stack is one of them: `mid_block.attentions.0`.
    let stacks: Vec<&Place> =
        places.iter().filter(|(pattern, _)| roles[*pattern] == Role::Block).map(|(_, place)| place).collect();
    for (pattern, place) in places.iter().filter(|(_, place)| place.rows.len() == 1 && place.modules.len() > 1) {
        if stacks.iter().any(|stack| overlap(&stack.modules, &place.modules) >= ALIKE) {
            roles.insert(pattern.clone(), Role::Block);
        }
    }
    roles
}
