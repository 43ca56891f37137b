//! The engine and the command from end to end, in one program, so that what the tests share is compiled and linked once.

mod command;
mod common;
mod failure;
mod query;
mod reference;
mod sql;
