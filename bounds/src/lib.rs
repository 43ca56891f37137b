//! Bounds that keep statements from taking the process of a DataFusion session with them, whichever front end they come from.
//!
//! Statements are bounded before they are planned ([`plan`]), because planning cannot be interrupted and its depth is that of
//! the statement. Functions whose results are much larger than their arguments take memory from the pool ([`bounded`]).
//! Plans hand their thread back every few milliseconds ([`YieldOften`]), so that a query can be stopped. A panic of the engine
//! is an error like others ([`QueryFault`]).

#![forbid(unsafe_code)]

mod faults;
mod functions;
mod planning;
mod sizes;
mod statements;
mod yields;

pub use faults::{QueryFault, quiet_panics};
pub use functions::{bounded, while_planning};
pub use planning::{on_planning_thread, streamed};
pub use sizes::value_bytes;
pub use statements::{NODES, TooLong, bytes, check_plan, check_statement, count, parse, parse_one, placeholders, plan};
pub use yields::YieldOften;
