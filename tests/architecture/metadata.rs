//! The packages of the workspace, as cargo knows them: whatever the tables of a manifest are called, and whatever a package
//! is called in code.

use std::path::Path;
use std::process::Command;
use std::{env, io};

use serde_json::Value;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its folder below the workspace's, empty for the package at the root.
    pub(crate) folder: String,
    /// What Rust code calls it.
    pub(crate) crate_name: String,
    /// The packages of this workspace that it depends on, those of tests and build scripts aside.
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) package: String,
    /// What the code of this crate calls it.
    pub(crate) called: String,
}

/// Asks cargo, which needs no network for this.
pub(crate) fn ask(root: &Path) -> io::Result<Vec<Package>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"];
    let done = Command::new(cargo).args(arguments).arg(root.join("Cargo.toml")).output()?;
    if !done.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned()));
    }
    let metadata = serde_json::from_slice(&done.stdout)?;
    read(&metadata).ok_or_else(|| io::Error::other("cargo metadata says less than it used to"))
}

/// Reads what cargo says. `None` if it lacks what is looked for.
fn read(metadata: &Value) -> Option<Vec<Package>> {
    let root = Path::new(metadata["workspace_root"].as_str()?);
    let packages = metadata["packages"].as_array()?;
    packages.iter().map(|package| read_package(package, root)).collect()
}

fn read_package(package: &Value, root: &Path) -> Option<Package> {
    let name = package["name"].as_str()?;
    let folder = Path::new(package["manifest_path"].as_str()?).parent()?.strip_prefix(root).ok()?;
    let is_library = |target: &&Value| {
        let kinds = target["kind"].as_array().into_iter().flatten();
        kinds.filter_map(Value::as_str).any(|kind| kind.ends_with("lib") || kind == "proc-macro")
    };
    let library = package["targets"].as_array()?.iter().find(is_library);
    let crate_name = library.map_or(Some(name), |target| target["name"].as_str())?;
    let dependencies =
        package["dependencies"].as_array()?.iter().filter(|d| d["kind"].is_null() && d["path"].is_string());
    let dependency = |dependency: &Value| {
        let package = dependency["name"].as_str()?;
        let called = dependency["rename"].as_str().unwrap_or(package).replace('-', "_");
        Some(Dependency { package: package.to_owned(), called })
    };
    Some(Package {
        name: name.to_owned(),
        folder: folder.to_str()?.replace('\\', "/"),
        crate_name: crate_name.replace('-', "_"),
        dependencies: dependencies.map(dependency).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn packages_are_read_with_what_code_calls_them() {
        let dependency = |name: &str, rename: Value, kind: Value| json!({"name": name, "rename": rename, "kind": kind, "path": "/w"});
        let metadata = json!({"workspace_root": "/w", "packages": [
            {"name": "engine", "manifest_path": "/w/Cargo.toml", "targets": [{"name": "engine", "kind": ["bin"]}], "dependencies": [
                dependency("a-b", json!("short"), Value::Null),
                dependency("a-b", Value::Null, json!("dev")),
                {"name": "serde", "rename": null, "kind": null},
            ]},
            {"name": "a-b", "manifest_path": "/w/a/b/Cargo.toml", "targets": [{"name": "native", "kind": ["cdylib"]}], "dependencies": []},
        ]});
        let packages = read(&metadata).unwrap();
        let named: Vec<_> = packages.iter().map(|p| (p.folder.as_str(), p.crate_name.as_str())).collect();
        assert_eq!(named, [("", "engine"), ("a/b", "native")]);
        let short = Dependency { package: "a-b".to_owned(), called: "short".to_owned() };
        assert_eq!(packages[0].dependencies, [short]);
        assert!(packages[1].dependencies.is_empty());
        assert_eq!(read(&json!({})), None);
    }
}
