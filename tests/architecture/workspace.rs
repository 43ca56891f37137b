//! The workspace as the checks see it: its crates with what their manifests ask for, their files, modules and paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use std::{fs, io};

use crate::metadata::{self, Dependency, Package};
use crate::paths::{self, Path};
use crate::tokens::{self, Tokens};

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) crates: Vec<Crate>,
}

#[derive(Debug)]
pub(crate) struct Crate {
    /// Its folder below the workspace's, `src` for the package at the root.
    pub(crate) folder: String,
    /// The package's name.
    pub(crate) package: String,
    /// What Rust code calls it.
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) manifest: String,
    pub(crate) files: Vec<File>,
}

#[derive(Debug)]
pub(crate) struct File {
    /// Below the workspace's folder.
    pub(crate) path: String,
    pub(crate) module: Vec<String>,
    pub(crate) tokens: Tokens,
    pub(crate) paths: Vec<Path>,
}

impl File {
    pub(crate) fn new(path: &str, module: Vec<String>, text: &str) -> Self {
        let tokens = tokens::read(text);
        let paths = paths::read(&tokens);
        Self { path: path.to_owned(), module, tokens, paths }
    }
}

impl Workspace {
    /// Reads the workspace whose `Cargo.toml` is in `root`.
    pub(crate) fn open(root: &FilePath) -> io::Result<Self> {
        let packages = metadata::ask(root)?.into_iter();
        Ok(Self { crates: packages.map(|package| open_crate(root, package)).collect::<io::Result<_>>()? })
    }

    /// The crate that the code of another one calls by a name, which the manifest may have changed.
    pub(crate) fn called(&self, name: &str, by: &Crate) -> Option<&Crate> {
        let renamed = by.dependencies.iter().find(|dependency| dependency.called == name);
        match renamed {
            Some(dependency) => self.of_package(&dependency.package),
            None => self.crates.iter().find(|other| other.name == name),
        }
    }

    pub(crate) fn of_package(&self, package: &str) -> Option<&Crate> {
        self.crates.iter().find(|other| other.package == package)
    }

    pub(crate) fn of_folder(&self, folder: &str) -> Option<&Crate> {
        self.crates.iter().find(|member| member.folder == folder)
    }
}

fn open_crate(root: &FilePath, package: Package) -> io::Result<Crate> {
    let Package { name, folder, crate_name, dependencies } = package;
    let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut files = Vec::new();
    open_files(root, &format!("{below}src"), &mut Vec::new(), &mut files)?;
    drop_test_modules(&mut files);
    let folder = if folder.is_empty() { "src".to_owned() } else { folder };
    Ok(Crate { folder, package: name, name: crate_name, dependencies, manifest: format!("{below}Cargo.toml"), files })
}

fn open_files(root: &FilePath, folder: &str, module: &mut Vec<String>, files: &mut Vec<File>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(folder))?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        if entry.file_type()?.is_dir() {
            module.push(name);
            open_files(root, &path, module, files)?;
            module.pop();
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let mut module = module.clone();
            if !matches!(stem, "lib" | "main" | "mod") {
                module.push(stem.to_owned());
            }
            files.push(File::new(&path, module, &fs::read_to_string(entry.path())?));
        }
    }
    Ok(())
}

/// Leaves out the files of modules that are declared for tests alone.
fn drop_test_modules(files: &mut Vec<File>) {
    let mut tests = BTreeSet::new();
    for file in &*files {
        for name in &file.tokens.test_modules {
            tests.insert([file.module.as_slice(), std::slice::from_ref(name)].concat());
        }
    }
    files.retain(|file| !(1..=file.module.len()).any(|length| tests.contains(&file.module[..length])));
}

/// A place of a path, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) from: Vec<String>,
    pub(crate) to: Vec<String>,
}

/// The modules of one crate, to follow paths in.
pub(crate) struct Modules<'a> {
    member: &'a Crate,
    modules: BTreeSet<Vec<String>>,
    /// What `use` lines call things in each module, and what that is.
    names: BTreeMap<(Vec<String>, String), Vec<String>>,
    globs: BTreeMap<Vec<String>, Vec<Vec<String>>>,
    /// What is defined in each module.
    items: BTreeSet<(Vec<String>, String)>,
    /// Macros, which the crate's root has wherever they are defined.
    macros: BTreeMap<String, Vec<String>>,
}

/// Names that lead to names that lead … end here.
const STEPS: usize = 8;

impl<'a> Modules<'a> {
    pub(crate) fn new(member: &'a Crate) -> Self {
        let mut found = Self {
            member,
            modules: BTreeSet::new(),
            names: BTreeMap::new(),
            globs: BTreeMap::new(),
            items: BTreeSet::new(),
            macros: BTreeMap::new(),
        };
        for file in &member.files {
            found.modules.insert(file.module.clone());
            for path in &file.paths {
                let module = [file.module.as_slice(), path.within.as_slice()].concat();
                found.modules.insert(module.clone());
                if let Some(name) = &path.name {
                    found.names.insert((module, name.clone()), path.words.clone());
                } else if path.is_glob {
                    found.globs.entry(module).or_default().push(path.words.clone());
                }
            }
            for three in file.tokens.tokens.windows(3) {
                if let (true, Some(name)) = (three[0].is_word("macro_rules") && three[1].is_sign('!'), three[2].word())
                {
                    found.macros.insert(name.to_owned(), file.module.clone());
                }
            }
            for pair in file.tokens.tokens.windows(2) {
                let defines = ["fn", "struct", "enum", "union", "trait", "type", "const", "static"];
                if let (Some(keyword), Some(name)) = (pair[0].word(), pair[1].word())
                    && defines.contains(&keyword)
                {
                    found.items.insert((file.module.clone(), name.to_owned()));
                }
            }
        }
        found
    }

    /// Every path of the crate that leads to another of its modules.
    pub(crate) fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for file in &self.member.files {
            for path in &file.paths {
                let from = [file.module.as_slice(), path.within.as_slice()].concat();
                let Some(to) = self.follow(&from, &path.words, STEPS) else { continue };
                if to != from {
                    arrows.push(Arrow { file: file.path.clone(), line: path.line, from, to });
                }
            }
        }
        arrows
    }

    /// The module in which that is defined which `words` name in the module `from`; None outside this crate.
    fn follow(&self, from: &[String], words: &[String], steps: usize) -> Option<Vec<String>> {
        let steps = steps.checked_sub(1)?;
        let (first, rest) = words.split_first()?;
        let mut at = from.to_vec();
        let mut words = rest;
        match first.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => {
                at.pop();
                while let Some((next, rest)) = words.split_first()
                    && next == "super"
                {
                    at.pop();
                    words = rest;
                }
            }
            name if name == self.member.name => at.clear(),
            name => {
                at = self.named(from, name, steps).module()?;
                if at == from {
                    // The path begins with an item of this very module.
                    return None;
                }
            }
        }
        for word in words {
            match self.named(&at, word, steps) {
                Lead::Module(next) if next != at => at = next,
                Lead::Module(_) | Lead::Unknown => break,
                Lead::Outside => return None,
            }
        }
        Some(at)
    }

    /// Where `name` of a module leads: to a module within, or to where it was taken from.
    fn named(&self, module: &[String], name: &str, steps: usize) -> Lead {
        let child = [module, &[name.to_owned()]].concat();
        if self.modules.contains(&child) {
            return Lead::Module(child);
        }
        let key = (module.to_vec(), name.to_owned());
        if let Some(words) = self.names.get(&key) {
            // `use x;` names another crate, not itself; `use crate as x;` names a module.
            let is_crate = words.len() == 1 && !matches!(words[0].as_str(), "crate" | "self" | "super");
            let found = if is_crate { None } else { self.follow(module, words, steps) };
            return found.map_or(Lead::Outside, Lead::Module);
        }
        if self.items.contains(&key) {
            return Lead::Module(module.to_vec());
        }
        if let (true, Some(defined)) = (module.is_empty(), self.macros.get(name)) {
            return Lead::Module(defined.clone());
        }
        let globs = self.globs.get(module).into_iter().flatten();
        let taken_from = globs.filter_map(|words| self.follow(module, words, steps));
        let mut leads = taken_from.filter(|other| other != module).filter_map(|other| {
            let found = self.named(&other, name, steps.checked_sub(1)?).module()?;
            (found != module).then_some(found)
        });
        leads.next().map_or(Lead::Unknown, Lead::Module)
    }
}

/// Where a name leads.
enum Lead {
    Module(Vec<String>),
    /// To another crate.
    Outside,
    Unknown,
}

impl Lead {
    fn module(self) -> Option<Vec<String>> {
        match self {
            Self::Module(module) => Some(module),
            Self::Outside | Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_followed_to_where_they_are_defined() {
        let file = |path: &str, module: &[&str], text: &str| {
            File::new(path, module.iter().map(|&word| word.to_owned()).collect(), text)
        };
        let member = Crate {
            folder: "a".to_owned(),
            package: "a".to_owned(),
            name: "a".to_owned(),
            dependencies: Vec::new(),
            manifest: String::new(),
            files: vec![
                file("lib.rs", &[], "mod b; mod c; pub use b::B;"),
                file("b/mod.rs", &["b"], "mod d; pub use d::*;"),
                file("b/d.rs", &["b", "d"], "pub struct B; pub struct D; #[macro_export] macro_rules! m { () => {} }"),
                file(
                    "c.rs",
                    &["c"],
                    "use crate::m; use crate::B; use crate::b; fn f() { b::D::new(); std::mem::take(); }",
                ),
                file("e.rs", &["e"], "use crate as root; use super as up; fn f() { root::c::f(); up::b::D::new(); }"),
            ],
        };
        let arrows = Modules::new(&member).arrows();
        let from_c: Vec<String> =
            arrows.iter().filter(|arrow| arrow.file == "c.rs").map(|arrow| arrow.to.join("::")).collect();
        assert_eq!(from_c, ["b::d", "b::d", "b", "b::d"]);
        let from_e: Vec<String> =
            arrows.iter().filter(|arrow| arrow.file == "e.rs").map(|arrow| arrow.to.join("::")).collect();
        assert_eq!(from_e, ["", "", "c", "b::d"]);
    }
}
