//! Figures and decisions as structs, and how they are shown: as numbers in words, and as a page.

mod html;
mod inspection;
pub mod numbers;
mod plan;
mod progress;
pub mod readable;
mod tensors;
mod validation;

pub use inspection::{InspectedTensor, Inspection};
pub use plan::{PlanReport, PlannedTensor};
pub(crate) use progress::{Listener, StageProgress};
pub use progress::{OnProgress, Progress, Stage};
pub use tensors::{ModelReport, QuantizeReport};
pub(crate) use tensors::{finite, sqnr_db};
pub use validation::{Below, LayerQuality, TensorQuality, ValidationReport};
