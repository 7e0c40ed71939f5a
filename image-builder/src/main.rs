//! The program `image-builder`: see the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match image_builder::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image-builder: {error:#}");
            ExitCode::FAILURE
        }
    }
}
