//! The engine and the command from end to end, in one program, so that what the tests share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod command;
mod common;
mod configure;
mod diffusion;
mod errors;
mod failure;
mod interruption;
mod job;
mod layers;
mod places;
mod plan;
mod progress;
mod query;
#[cfg(unix)]
mod readme;
mod reference;
mod relation;
mod report;
mod restored;
mod resume;
mod screen;
mod service;
mod sources;
mod sql;
mod stopping;
mod stored;
mod target;
mod types;
mod words;
