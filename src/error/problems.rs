//! What can be wrong with a setting or a place for an output. Sentences are made with the words of a front end.

use std::fmt;
use std::path::{Path, PathBuf};

use arrow_quant_formats::manifest::Reason;
use arrow_quant_stores::StoreError;

use super::Words;

/// Why a setting that is allowed by itself is refused: it does not fit the model, the machine or another setting.
#[derive(Debug)]
#[non_exhaustive]
pub enum SettingProblem {
    /// The pattern selects nothing that can be quantized.
    SelectsNothing {
        /// The pattern.
        pattern: String,
    },
    /// The setting decides what a plan decides.
    BesidePlan,
    /// The name of a plan's file does not tell its format.
    PlanName {
        /// The file.
        path: PathBuf,
    },
    /// The model cannot become so small.
    TooSmall {
        /// The size that was asked for, in the unit of the setting.
        asked: f64,
        /// About the smallest size there is.
        least: f64,
    },
    /// A target size is asked of a model without weights.
    NothingToChoose,
    /// The files turned out larger than the target size.
    NotMet {
        /// The target size in 10⁶ bytes.
        target_mb: f64,
        /// Tensors that need more bits because they were below the floor.
        below_floor: usize,
    },
    /// A name belongs to no tensor or module of the model.
    UnknownName {
        /// The name.
        name: String,
        /// The name that was probably meant.
        nearest: Option<String>,
    },
    /// Two patterns give a tensor different widths.
    Disagreement {
        /// Each pattern with its width.
        patterns: [(String, String); 2],
        /// The tensor that both match.
        tensor: String,
    },
    /// A width for a tensor that must be kept.
    CannotBeQuantized {
        /// The tensor.
        name: String,
        /// The width.
        width: String,
        /// Why it is kept.
        reason: Reason,
    },
    /// A tensor would have another type than was asked for, because of its rows.
    FallsBack {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: Reason,
        /// How many more tensors there are.
        others: usize,
    },
    /// What must be held in memory takes more than the limit.
    MemoryLimit {
        /// The limit in 10⁶ bytes.
        limit_mb: u64,
        /// The least limit that is enough.
        least_mb: u64,
        /// What is held.
        held: Held,
    },
    /// The weights are there in several variants, or not in the one that was asked for.
    Variant {
        /// The directory of the weights.
        path: PathBuf,
        /// The variant that was asked for, if one was.
        asked: Option<String>,
        /// The variants that are there.
        there: Vec<String>,
    },
    /// The target holds no weights of the type.
    TypeNotHeld {
        /// The type.
        name: &'static str,
        /// The target.
        target: &'static str,
        /// The types that it holds.
        held: String,
    },
    /// A class of diffusers that is not known as GGUF.
    UnknownClass {
        /// The class.
        class: String,
        /// Architectures that are known.
        known: String,
    },
    /// A method needs a calibration, and there is none.
    NeedsCalibration,
    /// A method needs the second moments of inputs.
    NeedsMoments {
        /// The file that should have them; `None` if the calibration is not a file.
        expected: Option<PathBuf>,
    },
    /// A size that is asked for by the weight, of a model without weights.
    NoWeights,
    /// A path or URL that cannot be allowed.
    Allow(StoreError),
}

/// What a job holds in memory from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The calibration alone.
    Calibration,
    /// The model, because it is not streamed.
    Model,
}

impl SettingProblem {
    /// Writes the sentence about a setting.
    // Long because: it has one sentence for each problem, and they are found best beside one another.
    pub(super) fn write(&self, field: &str, words: &dyn Words, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = words.setting(field);
        match self {
            Self::SelectsNothing { pattern } => write!(
                f,
                "{setting} is '{pattern}', which selects no tensor that can be quantized; see {}",
                words.list_of_tensors()
            ),
            Self::BesidePlan => {
                write!(f, "{setting} is set beside a plan, which says what each tensor becomes: leave one out")
            }
            Self::PlanName { path } => {
                write!(f, "{setting} is `{}`, allowed: names that end with .parquet or .csv", path.display())
            }
            Self::TooSmall { asked, least } => {
                let unit = if field == "target_model_size_mb" { " MB" } else { "" };
                write!(f, "{setting} is {asked:.3}{unit}, allowed for this model: about {least:.3}{unit} or more")
            }
            Self::NothingToChoose => write!(
                f,
                "{setting} is set, but the model has no weights that can be quantized to meet it: leave it out, or see {}",
                words.list_of_tensors()
            ),
            Self::NotMet { target_mb, below_floor: 0 } => {
                write!(f, "the target size of {target_mb:.6} MB ({setting}) cannot be met: allow a little more")
            }
            Self::NotMet { target_mb, below_floor } => write!(
                f,
                "the target size of {target_mb:.6} MB ({setting}) cannot be met, because {below_floor} tensors were below the \
                 floor and need more bits: allow more, or lower {}",
                words.setting("min_accuracy")
            ),
            Self::UnknownName { name, nearest } => {
                write!(f, "{setting} has '{name}', which is not a tensor or module of the model; ")?;
                match nearest {
                    Some(near) => write!(f, "did you mean '{near}'?"),
                    None => write!(f, "see {}", words.list_of_tensors()),
                }
            }
            Self::Disagreement { patterns: [(first, width), (second, other)], tensor } => write!(
                f,
                "{setting} of '{first}' is {width} and of '{second}' {other}, and both match {tensor}: name it, or narrow one"
            ),
            Self::CannotBeQuantized { name, width, reason } => {
                let reason = reason.worded(&|field| words.setting(field));
                write!(f, "{setting} of '{name}' is {width}, but it cannot be quantized ({reason}): leave it out")
            }
            Self::MemoryLimit { limit_mb, least_mb, held } => {
                write!(f, "{setting} is {limit_mb}, but ")?;
                match held {
                    Held::Calibration => write!(f, "the calibration is")?,
                    Held::Model => write!(f, "the model is, because {} is false,", words.setting("enable_streaming"))?,
                }
                write!(f, " held in memory: allowed for it are {least_mb} or more")?;
                match held {
                    Held::Calibration => Ok(()),
                    Held::Model => write!(f, ", or {}", words.switched("enable_streaming", true)),
                }
            }
            Self::Variant { path, asked, there } => write_variant((field, words), path, asked.as_deref(), there, f),
            Self::TypeNotHeld { name, target, held } => {
                write!(f, "{setting} is '{name}', which the target {target} cannot hold; allowed for it: {held}")
            }
            Self::UnknownClass { class, known } => {
                write!(
                    f,
                    "the model is a {class}, which is not known as GGUF: choose another format, or one of these as {setting}: {known}"
                )
            }
            Self::NeedsCalibration => write!(
                f,
                "{setting} is ldlq, which needs a calibration table with second moments beside it: give {}",
                words.advised("calibration")
            ),
            Self::NeedsMoments { expected: Some(path) } => write!(
                f,
                "{setting} is ldlq, which needs second moments of the layers' inputs, and there is no `{}`: record them with the \
                 calibration (docs/calibration.md says how), or choose another method",
                path.display()
            ),
            Self::NeedsMoments { expected: None } => write!(
                f,
                "{setting} is ldlq, which needs second moments in a file beside the calibration table: give the calibration as \
                 a file, or choose another method"
            ),
            Self::NoWeights => write!(f, "{setting} is set, but the model has no weights: leave it out"),
            Self::FallsBack { tensor, reason, others } => {
                write!(f, "{tensor}: {}", reason.worded(&|field| words.setting(field)))?;
                if *others > 0 {
                    write!(f, ", and {others} more tensors")?;
                }
                write!(f, ": choose another type, or leave out {setting} to give them one that fits")
            }
            Self::Allow(error) => write!(f, "{setting}: {error}"),
        }
    }
}

/// Writes which variants there are of the weights at a path.
fn write_variant(
    (field, words): (&str, &dyn Words),
    path: &Path,
    asked: Option<&str>,
    there: &[String],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let (setting, path, names) = (words.setting(field), path.display(), there.join(", "));
    match asked {
        Some(asked) if there.is_empty() => {
            write!(f, "{setting} is '{asked}', but the weights in `{path}` have no variants: leave it out")
        }
        Some(asked) => write!(f, "{setting} is '{asked}', allowed for `{path}`: {names}"),
        None => write!(
            f,
            "`{path}` has its weights as {names} and none without a variant: choose one with {}",
            words.advised(field)
        ),
    }
}

/// What is in the way of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputProblem {
    /// The output exists.
    Exists,
    /// The output exists, and is finished, and another job wrote it than the one that is to go on with it.
    OfAnotherJob,
    /// Another run is writing it.
    Running,
    /// An interrupted run left parts of it.
    Interrupted,
    /// Something that no run left is where the unfinished output goes.
    Foreign,
}

impl OutputProblem {
    /// Writes the sentence about a path.
    pub(super) fn write(self, path: &Path, words: &dyn Words, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ", path.display())?;
        match self {
            Self::Exists => match words.replacing() {
                Some(replacing) => write!(f, "exists already: replace it by {replacing}, remove it")?,
                None => write!(f, "exists already: remove it")?,
            },
            Self::OfAnotherJob => {
                write!(f, "is finished already, and was made of another model or with other settings: remove it")?
            }
            Self::Running => write!(f, "belongs to a run that is still going on: wait for it")?,
            Self::Interrupted => write!(
                f,
                "is left from a run that was interrupted: continue it with {}, remove it",
                words.switched("resume", true)
            )?,
            Self::Foreign => write!(f, "is in the way, and not from a run of arrow-quant: remove it")?,
        }
        write!(f, ", or choose another output")
    }
}
