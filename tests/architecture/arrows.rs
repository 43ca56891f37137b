//! The checks of arrows: between crates, between the engine's modules, in circles, and to words of certain places.

use std::collections::{BTreeMap, BTreeSet};

use crate::rules::{CircleRule, Rules, WordRule};
use crate::workspace::{Arrow, Crate, File, Modules, Workspace};

/// Everything that the rules do not allow, one line each.
pub(crate) fn check(workspace: &Workspace, rules: &Rules) -> Vec<String> {
    let mut faults = Vec::new();
    for member in &workspace.crates {
        between_crates(workspace, rules, member, &mut faults);
        let arrows = Modules::new(member).arrows();
        if member.folder == "src" {
            between_ranks(rules, member, &arrows, &mut faults);
        }
        circles(rules, member, &arrows, &mut faults);
        for file in &member.files {
            for rule in &rules.words {
                words(rule, file, &mut faults);
            }
            hidden(file, &mut faults);
        }
    }
    re_exports(workspace, rules, &mut faults);
    for rule in &rules.crates {
        if workspace.of_folder(&rule.folder).is_none() {
            faults.push(format!("docs/architecture.md: `{}` is not a crate of the workspace", rule.folder));
        }
    }
    faults
}

fn between_crates(workspace: &Workspace, rules: &Rules, member: &Crate, faults: &mut Vec<String>) {
    let Some(rule) = rules.crates.iter().find(|rule| rule.folder == member.folder) else {
        faults.push(format!("{}: `{}` is not in the table of docs/architecture.md", member.manifest, member.folder));
        return;
    };
    let mut check = |place: &str, to: Option<&Crate>| {
        let Some(to) = to.filter(|to| to.folder != member.folder) else { return };
        if !rule.knows.contains(&to.folder) {
            faults.push(format!("{place}: `{}` must not know `{}`", member.folder, to.folder));
        }
    };
    for dependency in &member.dependencies {
        check(&member.manifest, workspace.of_package(&dependency.package));
    }
    for file in &member.files {
        for path in &file.paths {
            check(&format!("{}:{}", file.path, path.line), workspace.called(&path.words[0], member));
        }
    }
}

/// What of one crate another one passes on, which crates may then use that must not know the first.
fn re_exports(workspace: &Workspace, rules: &Rules, faults: &mut Vec<String>) {
    let mut unused: Vec<(&String, &String)> =
        rules.re_exports.iter().flat_map(|rule| rule.names.iter().map(|name| (&rule.folder, name))).collect();
    for member in &workspace.crates {
        for file in &member.files {
            for path in file.paths.iter().filter(|path| path.is_public) {
                let other = workspace.called(&path.words[0], member).filter(|other| other.folder != member.folder);
                let Some(other) = other else { continue };
                let named = [std::slice::from_ref(&other.name), &path.words[1..]].concat().join("::");
                let is_listed = !path.is_glob
                    && rules.re_exports.iter().any(|rule| rule.folder == member.folder && rule.names.contains(&named));
                unused.retain(|(folder, name)| **folder != member.folder || **name != named);
                if !is_listed {
                    let glob = if path.is_glob { "::*" } else { "" };
                    faults.push(format!(
                        "{}:{}: `{}` must not pass on `{named}{glob}`: docs/architecture.md does not list it",
                        file.path, path.line, member.folder
                    ));
                }
            }
        }
    }
    for (folder, name) in unused {
        faults.push(format!("docs/architecture.md: `{folder}` does not pass on `{name}` any more"));
    }
}

/// What would hide arrows from this test: files that are not where their module is, crates that are not named in paths, and
/// other names for the crate itself.
fn hidden(file: &File, faults: &mut Vec<String>) {
    let tokens = &file.tokens.tokens;
    let mut hides = |line: usize, what: &str| faults.push(format!("{}:{line}: `{what}` hides arrows", file.path));
    for (at, token) in tokens.iter().enumerate() {
        let next = |ahead: usize| tokens.get(at + ahead);
        let is_sign = |ahead: usize, sign: char| next(ahead).is_some_and(|token| token.is_sign(sign));
        let is_attribute = at >= 2 && tokens[at - 1].is_sign('[') && tokens[at - 2].is_sign('#');
        if is_attribute && token.is_word("path") && is_sign(1, '=') {
            hides(token.line, "#[path]");
        }
        if is_attribute && token.is_word("cfg_attr") {
            let inside = tokens[at..].iter().take_while(|token| !token.is_sign(']'));
            if inside.clone().zip(inside.skip(1)).any(|(word, sign)| word.is_word("path") && sign.is_sign('=')) {
                hides(token.line, "#[path]");
            }
        }
        if token.is_word("include") && is_sign(1, '!') {
            hides(token.line, "include!");
        }
        if token.is_word("extern") && next(1).is_some_and(|token| token.is_word("crate")) {
            hides(token.line, "extern crate");
        }
    }
    for path in &file.paths {
        let is_own = path.words.iter().all(|word| matches!(word.as_str(), "crate" | "self" | "super"));
        if is_own && path.name.as_ref().is_some_and(|name| !path.words.contains(name)) {
            hides(path.line, &format!("use {} as", path.words.join("::")));
        }
    }
}

fn between_ranks(rules: &Rules, member: &Crate, arrows: &[Arrow], faults: &mut Vec<String>) {
    let rank = |module: &str| rules.ranks.iter().position(|ranked| ranked == module);
    let modules: BTreeSet<&String> = member.files.iter().filter_map(|file| file.module.first()).collect();
    for module in &modules {
        if rank(module).is_none() {
            faults.push(format!("src/: the module `{module}` is not in the table of docs/architecture.md"));
        }
    }
    for module in &rules.ranks {
        if !modules.contains(module) {
            faults.push(format!("docs/architecture.md: `src/` has no module `{module}`"));
        }
    }
    for arrow in arrows {
        let Some(from) = arrow.from.first() else { continue };
        let Some(to) = arrow.to.first() else {
            faults.push(fault(arrow, "must not know", from, "lib"));
            continue;
        };
        if from != to && rank(from) > rank(to) {
            faults.push(fault(arrow, "must not know", from, to));
        }
    }
}

fn fault(arrow: &Arrow, what: &str, from: &str, to: &str) -> String {
    format!("{}:{}: `{from}` {what} `{to}`", arrow.file, arrow.line)
}

/// Circles among the modules of one parent, at every depth.
fn circles(rules: &Rules, member: &Crate, arrows: &[Arrow], faults: &mut Vec<String>) {
    let mut levels: BTreeMap<&[String], BTreeMap<(&str, &str), &Arrow>> = BTreeMap::new();
    for arrow in arrows {
        let common = arrow.from.iter().zip(&arrow.to).take_while(|(from, to)| from == to).count();
        if let (Some(from), Some(to)) = (arrow.from.get(common), arrow.to.get(common)) {
            levels.entry(&arrow.from[..common]).or_default().entry((from, to)).or_insert(arrow);
        }
    }
    let of_crate = |parent: &str| parent.split("::").next() == Some(&member.folder);
    let mut unused: Vec<&CircleRule> = rules.circles.iter().filter(|rule| of_crate(&rule.parent)).collect();
    for (parent, edges) in levels {
        let parent = [std::slice::from_ref(&member.folder), parent].concat().join("::");
        for (&(from, to), arrow) in &edges {
            let Some(way) = way(&edges, to, from) else { continue };
            let allows = |rule: &CircleRule| {
                rule.parent == parent && way.iter().all(|at| rule.modules.iter().any(|module| module == at))
            };
            unused.retain(|rule| !allows(rule));
            if !rules.circles.iter().any(allows) {
                faults.push(format!("{} (a circle in {parent}: {})", fault(arrow, "knows", from, to), way.join(" → ")));
            }
        }
    }
    for rule in unused {
        faults.push(format!("docs/architecture.md: there is no such circle in `{}` any more", rule.parent));
    }
}

/// A way along the edges.
fn way<'a>(edges: &BTreeMap<(&'a str, &'a str), &Arrow>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![from]];
    let mut seen = BTreeSet::from([from]);
    while let Some(way) = ways.pop() {
        let at = way[way.len() - 1];
        if at == to {
            return Some(way);
        }
        for &(_, next) in edges.keys().filter(|(edge, _)| *edge == at) {
            if seen.insert(next) {
                ways.push([way.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

/// Words that stand where they must not. `a::b` is a path, `.m` the call of a method, anything else a word of the code.
fn words(rule: &WordRule, file: &File, faults: &mut Vec<String>) {
    let is_in = |places: &[String]| places.iter().any(|place| file.path.starts_with(place.as_str()));
    if is_in(&rule.only_in) || (rule.only_in.is_empty() && !is_in(&rule.not_in)) {
        return;
    }
    let tokens = &file.tokens.tokens;
    for word in &rule.words {
        let lines: Vec<usize> = if let Some(method) = word.strip_prefix('.') {
            let calls = tokens.windows(2).filter(|pair| pair[0].is_sign('.') && pair[1].is_word(method));
            calls.map(|pair| pair[1].line).collect()
        } else if word.contains("::") {
            let named: Vec<&str> = word.split("::").collect();
            file.paths.iter().filter(|path| begins(&path.words, &named)).map(|path| path.line).collect()
        } else {
            tokens.iter().filter(|token| token.is_word(word)).map(|token| token.line).collect()
        };
        let from = &file.path;
        faults.extend(lines.iter().map(|line| format!("{from}:{line}: `{from}` must not name `{word}`")));
    }
}

fn begins(words: &[String], named: &[&str]) -> bool {
    words.len() >= named.len() && words.iter().zip(named).all(|(word, name)| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;
    use crate::rules::{CrateRule, ReExportRule};

    /// A workspace of a crate `a`, and of the engine, which may know it.
    fn faults(planted: &[(&str, &str)]) -> Vec<String> {
        faults_but(planted, Vec::new())
    }

    fn faults_but(planted: &[(&str, &str)], circles: Vec<CircleRule>) -> Vec<String> {
        faults_in(planted, &[], circles, Vec::new())
    }

    /// The same, with dependencies of `a` and what they are called, and what may be passed on.
    fn faults_in(
        planted: &[(&str, &str)],
        dependencies: &[(&str, &str)],
        circles: Vec<CircleRule>,
        re_exports: Vec<ReExportRule>,
    ) -> Vec<String> {
        let rules = Rules {
            circles,
            re_exports,
            crates: vec![
                CrateRule { folder: "src".into(), knows: vec!["a".into()] },
                CrateRule { folder: "a".into(), knows: Vec::new() },
            ],
            ranks: ["top", "bottom"].map(String::from).into(),
            words: vec![
                WordRule { words: vec![".modified".into()], only_in: vec!["a".into()], not_in: Vec::new() },
                WordRule { words: vec!["std::fs".into()], only_in: Vec::new(), not_in: vec!["a".into()] },
            ],
        };
        let mut texts = BTreeMap::from([
            ("src/lib.rs", "mod top; mod bottom; pub use top::Top;"),
            ("src/top.rs", "use crate::bottom::Bottom; use arrow_a::{One, two::Two}; pub struct Top;"),
            ("src/bottom.rs", "pub struct Bottom;"),
            ("a/src/lib.rs", "mod one; mod two; pub use one::One;"),
            ("a/src/one.rs", "use crate::two::Two; pub struct One;"),
            ("a/src/two.rs", "pub struct Two;"),
        ]);
        texts.extend(planted.iter().copied());
        let member = |folder: &str, name: &str, manifest: &str| {
            let sources = if folder == "src" { "src/".to_owned() } else { format!("{folder}/src/") };
            let of_crate = texts.iter().filter_map(|(path, text)| {
                let module = path.strip_prefix(&sources)?.strip_suffix(".rs")?;
                let module = if module == "lib" { Vec::new() } else { module.split('/').map(str::to_owned).collect() };
                Some(File::new(path, module, text))
            });
            let dependency = |&(package, called): &(&str, &str)| Dependency {
                package: package.to_owned(),
                called: called.to_owned(),
            };
            let dependencies = if folder == "a" { dependencies.iter().map(dependency).collect() } else { Vec::new() };
            Crate {
                folder: folder.to_owned(),
                package: name.replace('_', "-"),
                name: name.to_owned(),
                dependencies,
                manifest: manifest.to_owned(),
                files: of_crate.collect(),
            }
        };
        let crates = vec![member("src", "engine", "Cargo.toml"), member("a", "arrow_a", "a/Cargo.toml")];
        check(&Workspace { crates }, &rules)
    }

    #[test]
    fn arrows_that_point_down_are_allowed() {
        assert_eq!(faults(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_planted_arrow_upwards_is_found() {
        let found = faults(&[("src/bottom.rs", "pub struct Bottom;\nfn f() { crate::top::Top; }")]);
        assert_eq!(found[0], "src/bottom.rs:2: `bottom` must not know `top`");
        let hidden = faults(&[("src/bottom.rs", "\nuse crate::Top; pub struct Bottom;")]);
        assert_eq!(hidden[0], "src/bottom.rs:2: `bottom` must not know `top`");
    }

    #[test]
    fn a_planted_arrow_between_crates_is_found() {
        assert_eq!(faults(&[("a/src/two.rs", "\n\nuse engine::Top;")]), ["a/src/two.rs:3: `a` must not know `src`"]);
    }

    #[test]
    fn a_planted_dependency_is_found_whatever_it_is_called() {
        let planted = [("a/src/two.rs", "pub struct Two;\nfn f() { e::Top; }")];
        assert_eq!(
            faults_in(&planted, &[("engine", "e")], Vec::new(), Vec::new()),
            ["a/Cargo.toml: `a` must not know `src`", "a/src/two.rs:2: `a` must not know `src`"]
        );
    }

    #[test]
    fn a_planted_re_export_is_found() {
        let planted = [("src/lib.rs", "mod top; mod bottom;\npub use arrow_a::{One, two as second};")];
        assert_eq!(
            faults(&planted),
            ["One", "two"].map(|name| {
                format!("src/lib.rs:2: `src` must not pass on `arrow_a::{name}`: docs/architecture.md does not list it")
            })
        );
        let glob = faults(&[("src/lib.rs", "mod top; mod bottom;\npub use arrow_a::*;")]);
        assert!(glob[0].starts_with("src/lib.rs:2: `src` must not pass on `arrow_a::*`"), "{glob:?}");
        let whole = faults(&[("src/top.rs", "\npub use arrow_a as a; pub struct Top;")]);
        assert!(whole[0].starts_with("src/top.rs:2: `src` must not pass on `arrow_a`"), "{whole:?}");
    }

    #[test]
    fn a_listed_re_export_is_allowed_while_it_exists() {
        let listed = || vec![ReExportRule { folder: "src".into(), names: vec!["arrow_a::One".into()] }];
        let planted = [("src/lib.rs", "mod top; mod bottom; pub use arrow_a::One; pub(crate) use arrow_a::two;")];
        assert_eq!(faults_in(&planted, &[], Vec::new(), listed()), Vec::<String>::new());
        assert_eq!(
            faults_in(&[], &[], Vec::new(), listed()),
            ["docs/architecture.md: `src` does not pass on `arrow_a::One` any more"]
        );
    }

    #[test]
    fn what_would_hide_arrows_is_found() {
        for (line, what) in [
            ("#[path = \"x.rs\"] mod x;", "#[path]"),
            ("#[cfg_attr(unix, path = \"x.rs\")] mod x;", "#[path]"),
            ("include!(\"x.rs\");", "include!"),
            ("extern crate engine as e;", "extern crate"),
            ("use crate as c;", "use crate as"),
            ("use super as s;", "use super as"),
            ("use crate::{self as c};", "use crate::self as"),
        ] {
            let found = faults(&[("a/src/two.rs", &format!("pub struct Two;\n{line}"))]);
            assert!(found.contains(&format!("a/src/two.rs:2: `{what}` hides arrows")), "{line}: {found:?}");
        }
        let usual = "pub struct Two; use std::path::Path; const TEXT: &str = include_str!(\"x\"); fn f() { path = 1; }";
        assert_eq!(faults(&[("a/src/two.rs", usual)]), Vec::<String>::new());
    }

    #[test]
    fn a_planted_circle_is_found() {
        let found = faults(&[("a/src/two.rs", "use super::one;\npub struct Two;")]);
        assert_eq!(
            found,
            [
                "a/src/one.rs:1: `one` knows `two` (a circle in a: two → one)",
                "a/src/two.rs:1: `two` knows `one` (a circle in a: one → two)"
            ]
        );
    }

    #[test]
    fn a_circle_with_a_reason_is_allowed_while_it_exists() {
        let circle = || vec![CircleRule { parent: "a".into(), modules: ["one", "two"].map(String::from).into() }];
        let planted = [("a/src/two.rs", "use super::one;\npub struct Two;")];
        assert_eq!(faults_but(&planted, circle()), Vec::<String>::new());
        assert_eq!(faults_but(&[], circle()), ["docs/architecture.md: there is no such circle in `a` any more"]);
    }

    #[test]
    fn a_module_without_a_rank_is_found() {
        let found = faults(&[("src/new.rs", "")]);
        assert_eq!(found, ["src/: the module `new` is not in the table of docs/architecture.md"]);
    }

    #[test]
    fn planted_words_are_found() {
        let found = faults(&[
            ("src/top.rs", "use crate::bottom::Bottom; pub struct Top;\nfn f() { m.modified(); }"),
            ("a/src/two.rs", "use std::{fs::File, io};\npub struct Two;"),
        ]);
        assert_eq!(
            found,
            [
                "src/top.rs:2: `src/top.rs` must not name `.modified`",
                "a/src/two.rs:1: `a/src/two.rs` must not name `std::fs`"
            ]
        );
    }
}
