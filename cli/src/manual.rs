//! `arrow-quant completions` and `arrow-quant man`: what shells and `man` know of the command, made from its arguments.

use std::io::Write;
use std::path::PathBuf;

use arrow_quant_v2::QuantError;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::failure::Failure;
use crate::{Cli, output};

/// What help says after the shells.
const COMPLETIONS: &str = "\
Examples:
  arrow-quant completions bash > ~/.local/share/bash-completion/completions/arrow-quant
  arrow-quant completions zsh  > ~/.zfunc/_arrow-quant      with fpath+=~/.zfunc before compinit
  arrow-quant completions fish > ~/.config/fish/completions/arrow-quant.fish";

/// What help says after the flags.
const PAGES: &str = "\
Examples:
  arrow-quant man | man -l -
  arrow-quant man --output ~/.local/share/man/man1";

/// Arguments of `arrow-quant completions`.
#[derive(clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(crate) struct CompletionArguments {
    /// The shell
    shell: Shell,
}

/// Arguments of `arrow-quant man`.
#[derive(clap::Args)]
#[command(after_help = PAGES)]
pub(crate) struct ManArguments {
    /// Write the pages of the command and of each of its subcommands into this directory, instead of printing the first
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// The command that scripts complete.
const NAME: &str = "arrow-quant";

/// What clap_complete 4.6 calls the command in the labels of its script for bash: it takes the part after the dash for a
/// subcommand, and what the script looks for under another name is never found.
const LABEL: &str = "arrow__subcmd__quant";

/// Prints the script of a shell.
pub(crate) fn complete(arguments: &CompletionArguments) -> Result<(), Failure> {
    // Made in memory: the generator panics where its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), NAME, &mut script);
    if arguments.shell == Shell::Bash {
        script = String::from_utf8_lossy(&script).replace(LABEL, &NAME.replace('-', "__")).into_bytes();
    }
    print(&script)
}

/// Prints the page of the command, or writes those of all commands.
pub(crate) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    let Some(directory) = &arguments.output else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return print(&page);
    };
    let written = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|source| QuantError::Io { path: directory.clone(), source }.into())
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = output::stdout();
    out.write_all(text)?;
    out.flush()?;
    Ok(())
}
