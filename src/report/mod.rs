//! Figures and decisions as structs, and how they are shown: as numbers in words, and as a page.

mod html;
pub mod numbers;
mod plan;
mod progress;
mod tensors;
mod validation;

pub use plan::{PlanReport, PlannedTensor};
pub(crate) use progress::{Listener, StageProgress};
pub use progress::{OnProgress, Progress, Stage};
pub use tensors::{ModelReport, QuantizeReport};
pub(crate) use tensors::{finite, sqnr_db};
pub use validation::{LayerQuality, TensorQuality, ValidationReport};
