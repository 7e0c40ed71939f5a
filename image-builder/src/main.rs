//! The command line.

use clap::{Parser, Subcommand};
use image_builder::schema::{Board, Document};
use std::path::PathBuf;

/// Builds SD-card images for Raspberry Pis.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Checks a board config.
    Check {
        /// The board config.
        board: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Check { board } => {
            let board: Board = Document::read(&board)?.parse()?;
            println!("{}: sound", board.description);
        }
    }
    Ok(())
}
