//! The house stays as `docs/architecture.md` says: arrows point down only, and nothing grows too long to be read.
//!
//! The tables of that document are the rules. A new crate or a new module of the engine gets its row there.

mod arrows;
mod metadata;
mod paths;
mod rules;
mod sizes;
mod tokens;
mod workspace;

use std::path::PathBuf;

use workspace::Workspace;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn opened() -> Workspace {
    Workspace::open(&root()).expect("the workspace can be read")
}

#[test]
fn arrows_point_where_the_document_allows() {
    let document = std::fs::read_to_string(root().join("docs/architecture.md")).expect("the document can be read");
    let rules = rules::read(&document).unwrap();
    let faults = arrows::check(&opened(), &rules);
    assert!(faults.is_empty(), "arrows that docs/architecture.md does not allow:\n{}", faults.join("\n"));
}

#[test]
fn nothing_is_long_without_a_reason() {
    let faults = sizes::check(&opened());
    assert!(faults.is_empty(), "split these, or write the reason beside them:\n{}", faults.join("\n"));
}

#[test]
fn every_crate_is_read() {
    let workspace = opened();
    for member in &workspace.crates {
        let arrows = workspace::Modules::new(member).arrows();
        assert!(!arrows.is_empty(), "no arrow was read in {}: is the reader broken?", member.folder);
    }
}
