//! How front ends name what their users set, so that one sentence serves all of them.

use super::Literals;

/// How a front end writes the settings that a message is about.
///
/// A setting has the name of its field in YAML: `bit_width`, `tensors`; options of a job have names too: `resume`.
pub trait Words {
    /// A setting as the subject of a sentence: `tensors`, `--tensors`.
    fn setting(&self, name: &str) -> String;

    /// A setting that the reader is advised to give: `tensors=` in Python.
    fn advised(&self, name: &str) -> String;

    /// A switch with the value that the reader is advised to give it.
    fn switched(&self, name: &str, value: bool) -> String;

    /// What makes a job replace what is at its output, if the front end has it.
    fn replacing(&self) -> Option<&'static str> {
        None
    }

    /// How the front end writes values.
    fn literals(&self) -> Literals;

    /// Where the reader can see the tensors of a model.
    fn list_of_tensors(&self) -> &'static str;
}

/// The names of fields, as YAML files and Rust have them. `Display` of errors uses these words.
#[derive(Debug, Clone, Copy)]
pub struct FieldNames;

impl Words for FieldNames {
    fn setting(&self, name: &str) -> String {
        name.to_string()
    }

    fn advised(&self, name: &str) -> String {
        format!("`{name}`")
    }

    fn switched(&self, name: &str, value: bool) -> String {
        format!("`{name}: {value}`")
    }

    fn literals(&self) -> Literals {
        Literals::Yaml
    }

    fn list_of_tensors(&self) -> &'static str {
        "the table `tensors` of the model"
    }
}
