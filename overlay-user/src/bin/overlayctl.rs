//! The operator's tool.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use overlay_user::datapath::pins::Pins;
use overlay_user::observe::{services, status};

/// Looks into the overlay of this node: leases, pods, programs, what took the fast path and what
/// was refused.
#[derive(Parser)]
#[command(name = "overlayctl", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// BPF file system that holds the pinned programs and maps
    #[arg(
        long,
        global = true,
        env = "OVERLAY_BPFFS",
        default_value = "/sys/fs/bpf",
        value_name = "DIR"
    )]
    bpffs: PathBuf,
    /// Directory with the agent's notes
    #[arg(
        long,
        global = true,
        env = "OVERLAY_RUN_DIR",
        default_value = "/run/overlay",
        value_name = "DIR"
    )]
    run_dir: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  overlayctl status
  overlayctl status --output json | jq .fast_path.hit_ratio
  overlayctl services";

#[derive(Subcommand)]
enum Command {
    /// Show this node's lease, peers, pods, programs and counters, as the kernel has them
    ///
    /// Works with the agent dead. Exits with 3 where something could not be read.
    Status {
        /// How to print
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show the Services that sockets are given servers of, and what is refused of Services
    ///
    /// None where kube-proxy translates: `overlayctl status` says why.
    Services {
        /// How to print
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Exit status of `overlayctl status` where a part of the state could not be read.
const DEGRADED: u8 = 3;

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let pins = Pins::new(cli.bpffs.join("overlay"));
    let output = match cli.command {
        Command::Status { output } => output,
        Command::Services { output } => {
            let services = services::collect(&pins, &cli.run_dir)?;
            match output {
                Output::Table => println!("{}", services::render(&services)),
                Output::Json => println!("{}", serde_json::to_string_pretty(&services)?),
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    let status = runtime.block_on(status::collect(&pins, &cli.run_dir));
    match output {
        Output::Table => println!("{}", status::render(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    let is_whole = status.problems.is_empty();
    Ok(ExitCode::from(if is_whole { 0 } else { DEGRADED }))
}
