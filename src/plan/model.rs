//! The plan of a model: what becomes of each of its tensors.

use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::manifest::Reason;

use super::allowed::Allowed;
use super::choice::{Choice, JobSettings};
use super::contents::{Contents, look};
use super::family::Detected;
use super::file;
use super::refusals::{refuse_decisions, refuse_fallbacks, refuse_selection_of_nothing, refuse_type};
use super::request::Request;
use super::sample::Sampling;
use super::size_target::Sizing;
use super::tensors::{TensorPlan, plan_tensors, precision, quantized_bytes, settled};
use crate::{DiffusionQuantConfig, Model, Result};

/// What becomes of every tensor of a model.
#[derive(Debug, Clone)]
pub(crate) struct ModelPlan {
    pub model: Arc<Model>,
    /// Scheme and method.
    pub settings: JobSettings,
    /// What the target can hold.
    pub allowed: Allowed,
    /// In the order of the model.
    pub tensors: Vec<TensorPlan>,
    /// What the values of each tensor are.
    pub contents: Vec<Contents>,
    /// With a target size, what it chose.
    pub sizing: Option<Sizing>,
    /// Tensors that must become the same, by index.
    pub units: Vec<Vec<usize>>,
}

impl ModelPlan {
    /// Plans what a configuration says, or a table in a file, before a target size is looked at. It compares tensors with
    /// each other: not for a thread of the runtime.
    ///
    /// # Errors
    /// If the configuration, or the table, does not fit the model, or they contradict each other.
    pub(crate) fn new(
        model: Arc<Model>,
        config: &DiffusionQuantConfig,
        table: Option<&Path>,
        detected: &Detected,
        (allowed, requests): (Allowed, &[Request]),
    ) -> Result<Self> {
        let settings = JobSettings { scheme: config.scheme, method: config.method };
        refuse_type(config, &allowed)?;
        let contents = model.tensors().iter().map(look).collect::<Result<Vec<_>>>()?;
        let mut tensors = match table {
            Some(path) => {
                refuse_decisions(config)?;
                file::read(path, &model, config.group_size, settings, &allowed)?
            }
            None => plan_tensors(&model, config, settings, detected, &allowed, (&contents, requests))?,
        };
        TensorPlan::settle(&mut tensors, requests, allowed.target);
        refuse_selection_of_nothing(config, &tensors)?;
        refuse_fallbacks(config, &tensors)?;
        Ok(Self { model, settings, allowed, tensors, contents, sizing: None, units: Vec::new() })
    }

    /// With tensors that must become the same.
    pub(crate) fn with_units(mut self, units: Vec<Vec<usize>>) -> Self {
        self.units = units;
        for unit in &self.units {
            // What is said of one is said of all.
            if unit.iter().any(|index| !self.tensors[*index].is_open) {
                unit.iter().for_each(|index| self.tensors[*index].is_open = false);
            }
        }
        self.follow_units();
        self
    }

    /// A tensor, and those that must become the same; the one that stands for all is the first.
    pub(crate) fn unit(&self, index: usize) -> Vec<usize> {
        self.units.iter().find(|unit| unit.contains(&index)).map_or_else(|| vec![index], Clone::clone)
    }

    /// Gives tensors that must become the same what the one has that keeps most of itself. True if that changed one.
    pub(crate) fn follow_units(&mut self) -> bool {
        let mut has_changed = false;
        for unit in &self.units {
            let Some(&best) = unit.iter().max_by_key(|index| precision(&self.tensors[**index])) else { continue };
            let (choice, name) = (self.tensors[best].choice, self.tensors[best].name());
            let reason = self.tensors[best].reason.clone();
            for &index in unit.iter().filter(|index| **index != best) {
                let plan = &mut self.tensors[index];
                if plan.choice != choice {
                    plan.choice = choice;
                    plan.reason = Reason::OneLayer { tensor: name.clone(), reason: Box::new(reason.clone()) };
                    has_changed = true;
                }
            }
        }
        has_changed
    }

    /// Plans what the target size has chosen, if there is one.
    pub(crate) fn follow_sizing(&mut self) {
        let Some(sizing) = &self.sizing else { return };
        let (reason, chosen) = (sizing.reason(), sizing.allocation.chosen());
        let chosen: Vec<_> = chosen.map(|(first, cost)| (self.unit(first), cost.choice)).collect();
        for (unit, choice) in chosen {
            for index in unit {
                let plan = &mut self.tensors[index];
                plan.choice = choice;
                plan.reason = reason.clone();
                *plan = settled(plan.clone(), &self.model.tensors()[index], self.settings, &self.allowed);
            }
        }
        self.follow_units();
        self.follow_ties();
    }

    /// Gives tensors that are the same as another its choice.
    pub(crate) fn follow_ties(&mut self) {
        for index in 0..self.tensors.len() {
            if let Some(first) = self.tensors[index].same_as {
                self.tensors[index].choice = self.tensors[first].choice;
            }
        }
    }

    /// Gives a tensor the next width that the target allows, or keeps it.
    pub(crate) fn widen(&mut self, index: usize) {
        let plan = &mut self.tensors[index];
        plan.choice = plan.choice.and_then(|choice| self.allowed.wider(choice));
        *plan = settled(plan.clone(), &self.model.tensors()[index], self.settings, &self.allowed);
    }

    /// Tensors to measure, by index, with the choices of each, of which those are left out that do not fit its rows.
    pub(crate) fn sampling(&self, mut wanted: Vec<(usize, Vec<Choice>)>, threads: usize) -> Sampling {
        for (index, choices) in &mut wanted {
            choices.retain(|choice| self.allowed.fits_rows(&self.model.tensors()[*index], *choice));
        }
        Sampling { model: Arc::clone(&self.model), wanted, settings: self.settings, threads }
    }

    /// Bytes of tensors whose size is not up to a target size.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        let fixed = |plan: &&TensorPlan| !plan.is_open && plan.same_as.is_none();
        let indexes = self.tensors.iter().enumerate().filter(|(_, plan)| fixed(plan)).map(|(index, _)| index);
        indexes.map(|index| self.bytes(index)).sum()
    }

    /// Bytes that a tensor will take, before anything of it was measured.
    pub(crate) fn bytes(&self, index: usize) -> u64 {
        let tensor = &self.model.tensors()[index];
        let choice = self.tensors[index].choice;
        choice.map_or(tensor.bytes, |choice| quantized_bytes(tensor, choice, self.settings.scheme))
    }
}
