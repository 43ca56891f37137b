//! Why the command ends without success, told in one line, and its exit status.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use arrow::error::ArrowError;
use arrow_quant_v2::config::{Configuration, Field, Layered};
use arrow_quant_v2::{About, FIELDS, Kind, Literals, Origin, QuantError, RecordedReason, Words};
use datafusion::error::DataFusionError;
use serde_json::{Map, Value};

/// Why the command ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The work could not be done.
    Job(QuantError),
    /// The work could not be done with settings that came from several places.
    Configured {
        /// Why.
        error: QuantError,
        /// What the settings are called.
        names: Names,
    },
    /// Results could not be written to standard output.
    Output(io::Error),
    /// The command itself has something to say.
    Message(String),
    /// Arguments that are not understood, or do not go together.
    Usage(String),
    /// The models could be compared, and the quantized one is not good enough.
    BelowFloor(String),
    /// A signal ended the work.
    Interrupted {
        /// 128 and the signal's number.
        status: u8,
        /// What it left behind.
        message: String,
    },
}

impl Failure {
    /// The same of work with a configuration, whose fields may come from a file or the environment.
    pub(crate) fn with<C: Configuration>(self, configuration: &Layered<C>) -> Self {
        self.named(Names::of(configuration))
    }

    /// The same of work with settings that have these names.
    pub(crate) fn named(self, names: Names) -> Self {
        match self {
            Self::Job(error) => Self::Configured { error, names },
            other => other,
        }
    }

    /// Tells it on standard error.
    pub(crate) fn print(&self) {
        // Nobody is left to hear that standard error is closed.
        let _ = writeln!(io::stderr(), "error: {self}");
    }

    /// Tells it on standard error, as one line of JSON if results are JSON, and the status to exit with. A closed pipe
    /// (`| head`) is not a failure.
    pub(crate) fn report(self, as_json: bool) -> ExitCode {
        match &self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            // A person interrupted it, so the message is for a person.
            Self::Interrupted { .. } => self.print(),
            _ if as_json => {
                // Nobody is left to hear that standard error is closed.
                let _ = writeln!(io::stderr(), "{}", self.json());
            }
            _ => self.print(),
        }
        ExitCode::from(self.status())
    }

    /// The exit status; `docs/command.md` lists them.
    fn status(&self) -> u8 {
        match self {
            Self::Interrupted { status, .. } => *status,
            Self::Usage(_) => 2,
            Self::BelowFloor(_)
            | Self::Job(QuantError::BelowFloor { .. })
            | Self::Configured { error: QuantError::BelowFloor { .. }, .. } => BELOW_FLOOR,
            Self::Job(_) | Self::Configured { .. } | Self::Output(_) | Self::Message(_) => 1,
        }
    }

    /// `{"error": {"kind", "message", "status"}}`, with the tensor, the field and the path that it is about, where it is about one.
    fn json(&self) -> Value {
        let mut error = Map::new();
        error.insert("kind".to_string(), self.kind().into());
        error.insert("message".to_string(), self.to_string().into());
        error.insert("status".to_string(), self.status().into());
        if let Self::Job(job) | Self::Configured { error: job, .. } = self {
            let About { kind: _, tensor, field, path } = job.about();
            let path = path.map(|path| path.to_string_lossy().into_owned());
            let about = [("tensor", tensor), ("field", field), ("path", path.as_deref())];
            error.extend(about.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?.into()))));
        }
        serde_json::json!({ "error": error })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Job(error) | Self::Configured { error, .. } => error.about().kind.name(),
            Self::Output(_) => "output",
            Self::Message(_) => "failed",
            Self::Usage(_) => "usage",
            Self::BelowFloor(_) => Kind::Validation.name(),
            Self::Interrupted { .. } => "interrupted",
        }
    }
}

/// The exit status if the work could be done and its result is below the floor.
const BELOW_FLOOR: u8 = 3;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Job(error) => told(error, &Names::default()),
            Self::Configured { error, names } => told(error, names),
            Self::Output(error) => format!("cannot write to standard output: {error}"),
            Self::Message(message)
            | Self::Usage(message)
            | Self::BelowFloor(message)
            | Self::Interrupted { message, .. } => message.clone(),
        };
        f.write_str(&one_line(&message))
    }
}

impl From<QuantError> for Failure {
    fn from(error: QuantError) -> Self {
        Self::Job(error)
    }
}

impl From<clap::Error> for Failure {
    /// The arguments are not understood. What help to ask for is left to the text form.
    fn from(error: clap::Error) -> Self {
        let text = error.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text);
        Self::Usage(message.split("\n\nUsage:").next().unwrap_or(message).to_string())
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Self::Job(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<ArrowError> for Failure {
    /// Arrow's writers hand on what standard output said; all else is the query's.
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => Self::Output(error),
            error => DataFusionError::from(error).into(),
        }
    }
}

/// An error of the engine in the words of the command line.
fn told(error: &QuantError, names: &Names) -> String {
    let sentence = error.worded(names).to_string();
    if is_query(error) { lower_first(&sentence) } else { sentence }
}

/// True for the sentences of DataFusion.
fn is_query(error: &QuantError) -> bool {
    match error {
        QuantError::Unfinished { problem } => is_query(problem),
        error => matches!(error, QuantError::Query(_)),
    }
}

/// The words of the command line: settings are flags, except those that came from elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Name>);

/// What a setting is called.
#[derive(Debug)]
struct Name {
    field: &'static str,
    /// Where its value is from.
    called: String,
    flag: String,
}

impl Names {
    /// The names of the fields of a configuration, each as its place has it.
    pub(crate) fn of<C: Configuration>(configuration: &Layered<C>) -> Self {
        let name = |field: &'static Field<C>| Name {
            field: field.name,
            called: called(field, configuration.set_by(field.name)),
            flag: format!("--{}", field.flag()),
        };
        Self(C::FIELDS.iter().map(name).collect())
    }

    /// The same, with the name that a field has at a place.
    #[cfg(feature = "service")]
    pub(crate) fn with<C: Configuration>(mut self, field: &Field<C>, place: Option<&Origin>) -> Self {
        if let Some(name) = self.0.iter_mut().find(|name| name.field == field.name) {
            name.called = called(field, place);
        }
        self
    }

    /// Why a tensor became what it is.
    pub(crate) fn because(&self, recorded: &RecordedReason) -> String {
        recorded.reason().worded(&|field| self.setting(field))
    }

    fn flag(&self, name: &str) -> String {
        let known = self.0.iter().find(|known| known.field == name);
        known.map_or_else(|| flag_of(name), |known| known.flag.clone())
    }
}

/// What a field is called at the place that its value is from.
fn called<C: Configuration>(field: &Field<C>, place: Option<&Origin>) -> String {
    match place {
        Some(Origin::File(path)) => format!("{} in {}", field.name, path.display()),
        Some(Origin::Variable(variable)) => (*variable).to_string(),
        Some(Origin::Flag(flag)) => flag.clone(),
        Some(Origin::Profile(_) | Origin::Explicit) | None => format!("--{}", field.flag()),
    }
}

impl Words for Names {
    fn setting(&self, name: &str) -> String {
        let known = self.0.iter().find(|known| known.field == name);
        known.map_or_else(|| flag_of(name), |known| known.called.clone())
    }

    fn advised(&self, name: &str) -> String {
        self.flag(name)
    }

    fn switched(&self, name: &str, value: bool) -> String {
        // A switch without a value is on; one that only turns things on takes no value.
        if value { self.flag(name) } else { format!("{}=false", self.flag(name)) }
    }

    fn literals(&self) -> Literals {
        Literals::Flag
    }

    fn list_of_tensors(&self) -> &'static str {
        "arrow-quant inspect"
    }
}

/// The flag of a setting. Options of a job that are not fields have flags of their own names.
fn flag_of(name: &str) -> String {
    let field = FIELDS.iter().find(|field| field.name == name);
    format!("--{}", field.map_or_else(|| name.replace('_', "-"), Field::flag))
}

/// `message` on one line. Names in it come from files: no control character reaches the terminal.
fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A sentence's first letter in lower case; an abbreviation (SQL) stays.
fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(message.chars().skip(1)).collect()
        }
        _ => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow_quant_v2::{ConfigLayers, Held, OutputProblem, SettingProblem};

    use super::*;

    #[test]
    fn a_message_is_one_clean_line() {
        assert_eq!(one_line("first\n  second\n\n\x1b[31mthird"), "first second  [31mthird");
    }

    #[test]
    fn an_error_as_json_says_what_it_is_about() {
        let error = QuantError::Weights {
            tensor: "w".to_string(),
            problem: arrow_quant_kernels::KernelError::NotFinite { index: 3, value: f64::NAN },
        };
        let failure = Failure::from(error);
        let json = failure.json();
        let expected = serde_json::json!({
            "kind": "quantization", "message": failure.to_string(), "status": 1, "tensor": "w",
        });
        assert_eq!(json["error"], expected);
        let below = Failure::BelowFloor("poor".to_string());
        assert_eq!((below.kind(), below.status()), ("validation", 3));
    }

    #[test]
    fn settings_are_flags() {
        let told = |error: QuantError| Failure::from(error).to_string();
        let output = QuantError::Output { path: "out.partial".into(), problem: OutputProblem::Interrupted };
        assert_eq!(
            told(output),
            "`out.partial` is left from a run that was interrupted: continue it with --resume, remove it, or choose another \
             output"
        );
        let held = Held::Model;
        let problem = SettingProblem::MemoryLimit { limit_mb: 200, least_mb: 300, held };
        assert_eq!(
            told(QuantError::setting("max_memory_limit_mb", problem)),
            "--max-memory-limit-mb is 200, but the model is, because --enable-streaming is false, held in memory: allowed for \
             it are 300 or more, or --enable-streaming"
        );
        let modality = told(QuantError::UnknownModality { path: "model".into() });
        assert!(modality.contains("give --modality as text, code, image or audio"), "{modality}");
        assert_eq!(Names::default().switched("enable_streaming", false), "--enable-streaming=false");
    }

    #[test]
    fn settings_of_other_places_have_their_names_there() {
        let variables = [("ARROW_QUANT_MAX_MEMORY_MB".to_string(), "200".to_string())];
        let layers = ConfigLayers::new().variables(variables).flag("enable_streaming", false.into());
        let problem = SettingProblem::MemoryLimit { limit_mb: 200, least_mb: 300, held: Held::Model };
        let failure = Failure::from(QuantError::setting("max_memory_limit_mb", problem));
        let message = failure.with(&layers.load().unwrap()).to_string();
        assert!(message.starts_with("ARROW_QUANT_MAX_MEMORY_MB is 200, but the model is, because --enable-streaming"));
    }

    #[test]
    fn every_field_has_the_flag_that_messages_name() {
        use clap::CommandFactory;

        let command = crate::Cli::command();
        let quantize = command.find_subcommand("quantize").unwrap();
        // `resume` is an option of the job, and the number of threads a flag of the command as a whole.
        let names = FIELDS.iter().map(|field| field.name).chain(["resume"]);
        for name in names {
            let flag = flag_of(name);
            let is_there = |command: &clap::Command| {
                command.get_arguments().any(|argument| argument.get_long() == Some(&flag[2..]))
            };
            assert!(is_there(quantize) || is_there(&command), "{name}: {flag}");
        }
    }

    #[test]
    fn sentences_start_small_and_abbreviations_stay() {
        assert_eq!(lower_first("No field named x"), "no field named x");
        assert_eq!(lower_first("SQL error"), "SQL error");
        assert_eq!(lower_first(""), "");
    }
}
