//! `arrow-quant targets`: what a model can be written as, and which programs load it.

use std::io::Write;

use arrow_quant_v2::{FormatReport, Runtime, formats};

use crate::failure::Failure;
use crate::output;
use crate::table::write_facts;

/// What help says after the flags.
const EXAMPLES: &str = "\
Examples:
  arrow-quant targets
  arrow-quant quantize smollm2 smollm2-mlx --for mlx";

/// Arguments of `arrow-quant targets`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

/// Shows every format.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let formats = formats();
    if arguments.json {
        return output::write_json(&formats);
    }
    let mut out = output::stdout();
    for format in &formats {
        write_facts(&facts(format), &mut out)?;
        writeln!(out)?;
    }
    let runtimes: Vec<_> = Runtime::ALL.iter().map(|runtime| runtime.name()).collect();
    writeln!(out, "quantize --for RUNTIME chooses format and type for {}", runtimes.join(", "))?;
    out.flush()?;
    Ok(())
}

fn facts(format: &FormatReport) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("format", format.format.to_string()),
        ("loaded by", format.runtimes.to_string()),
        ("output", format.output.to_string()),
        ("types", format.types.join(", ")),
    ];
    if !format.group_sizes.is_empty() {
        let sizes: Vec<_> = format.group_sizes.iter().map(ToString::to_string).collect();
        facts.push(("group sizes", sizes.join(", ")));
        facts.push(("schemes", format.schemes.join(", ")));
    }
    facts.push(("limits", format.limits.to_string()));
    facts
}
