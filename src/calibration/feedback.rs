//! What second moments say on the tensors of a job: which are rounded with error feedback, and with how much damping.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_quant_formats::shown;
use arrow_quant_kernels::Isa;

use super::moments::{Input, Moments, beside};
use crate::plan::{Channels, Feedback, TensorPlan};
use crate::workers::on_threads;
use crate::{Calibration, QuantError, Result, SettingProblem};

/// What is added to the diagonal of second moments, as a part of its mean: the least that lets them be factored.
const DAMPING: [f32; 3] = [0.01, 0.1, 1.0];

/// Bytes that second moments may take while several of them are factored at once.
const AT_ONCE: u64 = 1 << 29;

/// Opens the second moments that a method with error feedback needs.
///
/// # Errors
/// If there is no calibration, no file of second moments beside it, or it cannot be read.
pub(crate) fn open_moments(calibration: Option<&Calibration>) -> Result<Moments> {
    let path = match calibration.map(Calibration::path) {
        Some(Some(path)) => beside(path),
        Some(None) => return Err(QuantError::setting("method", SettingProblem::NeedsMoments { expected: None })),
        None => return Err(QuantError::setting("method", SettingProblem::NeedsCalibration)),
    };
    if !path.is_file() {
        return Err(QuantError::setting("method", SettingProblem::NeedsMoments { expected: Some(path) }));
    }
    Moments::open(&path)
}

/// Plans error feedback for the tensors whose inputs have second moments; `tensors` are those of each input. Returns what
/// there is to know of it: how many tensors have none, and which have some that are of no use.
///
/// # Errors
/// If the moments cannot be read.
pub(crate) async fn plan_feedback(
    moments: Arc<Moments>,
    tensors: &[Vec<usize>],
    plans: &mut [TensorPlan],
    threads: usize,
) -> Result<Vec<String>> {
    let inputs = inputs(tensors, plans);
    let mut needed: Vec<usize> = inputs.values().filter(|inputs| inputs.len() == 1).map(|inputs| inputs[0]).collect();
    needed.sort_unstable();
    needed.dedup();
    let most = needed.iter().map(|&input| moments.inputs()[input].bytes()).max().unwrap_or(1);
    let threads = threads.min((AT_ONCE / most.max(1)) as usize).max(1);
    let wanted = needed.clone();
    let found = on_threads(threads, needed.len(), move |at| examine(&moments, &moments.inputs()[wanted[at]])).await?;
    let found: HashMap<usize, Examined> = needed.into_iter().zip(found).collect();
    let (mut told, mut without) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (index, plan) in plans.iter_mut().enumerate() {
        if plan.same_as.is_some() || plan.choice.is_none() {
            continue;
        }
        let what = match inputs.get(&index).map(Vec::as_slice) {
            None => {
                without += 1;
                None
            }
            Some([input]) => follow(plan, &found[input]),
            Some(_) => Some(rejected("its weights have two inputs with second moments")),
        };
        if let Some(what) = what {
            told.entry(what).or_default().push(shown(&plan.name()));
        }
    }
    let mut notes: Vec<_> = told.into_iter().map(|(what, tensors)| format!("{}: {what}", listed(&tensors))).collect();
    if without > 0 {
        let [have, their] = if without == 1 { ["tensor has", "its"] } else { ["tensors have", "their"] };
        notes.push(format!("{without} quantized {have} no second moments: {their} method is mse"));
    }
    Ok(notes)
}

/// The inputs that each tensor is multiplied with which is stored and quantized.
fn inputs(tensors: &[Vec<usize>], plans: &[TensorPlan]) -> HashMap<usize, Vec<usize>> {
    let mut inputs_of: HashMap<usize, Vec<usize>> = HashMap::new();
    for (input, tensors) in tensors.iter().enumerate() {
        let stored = tensors.iter().map(|&index| plans[index].same_as.unwrap_or(index));
        for index in stored.filter(|&index| plans[index].choice.is_some()) {
            let inputs = inputs_of.entry(index).or_default();
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
    }
    inputs_of
}

/// Plans what was found out of the moments of a tensor's input. Returns what there is to know of it.
fn follow(plan: &mut TensorPlan, examined: &Examined) -> Option<String> {
    match examined {
        Ok(feedback) => {
            let channels = plan.channels.take();
            let channels = channels.map_or_else(|| Channels::new(Vec::new(), Vec::new()), Arc::unwrap_or_clone);
            plan.channels = Some(Arc::new(channels.with_feedback(feedback.clone())));
            let needed = || format!("its second moments needed damping of {}", feedback.damping);
            (feedback.damping > DAMPING[0]).then(needed)
        }
        Err(why) => Some(rejected(why)),
    }
}

fn rejected(why: &str) -> String {
    format!("{why}, so its method is mse")
}

/// `a`, `a and b`, or `a and 7 more`.
fn listed(tensors: &[String]) -> String {
    match tensors {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// How the moments of an input are used, or why they are of no use.
type Examined = Result<Feedback, String>;

/// Looks whether the moments of an input can be factored.
fn examine(moments: &Moments, input: &Input) -> Result<Examined> {
    let largest = input.blocks.iter().copied().max().unwrap_or_default();
    if input.samples < largest as i64 {
        return Ok(Err(format!(
            "its second moments are of {} samples, fewer than the {largest} channels of a block",
            input.samples
        )));
    }
    let triangles = moments.triangles(input)?;
    let isa = Isa::active()?;
    let mut why = String::new();
    for damping in DAMPING {
        match triangles.factor(isa, damping) {
            Ok(_) => {
                let path = std::path::absolute(moments.path()).map_err(|e| QuantError::io(moments.path(), e))?;
                let hash = triangles.hash();
                return Ok(Ok(Feedback { path, input: input.name.clone(), damping, hash }));
            }
            Err(error) => why = error.to_string(),
        }
    }
    Ok(Err(why))
}

/// Bytes of the rows that a part rounds at once: weights, errors and codes; measured.
const ROUNDING: u64 = 45_000_000;

/// The most bytes that error feedback takes at once in a job whose parts under way are so many.
pub(crate) fn factor_bytes(moments: &Moments, in_flight: usize) -> u64 {
    let mut bytes: Vec<u64> = moments.inputs().iter().map(Input::factor_bytes).collect();
    bytes.sort_unstable_by(|a, b| b.cmp(a));
    // One of each part, and what the largest takes while it is made.
    let factors = bytes.iter().take(in_flight).sum::<u64>() + 2 * bytes.first().unwrap_or(&0);
    factors + ROUNDING * in_flight as u64
}
