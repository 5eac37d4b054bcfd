//! The node agent `overlayd`; see [`overlay_user::agent`].

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use overlay_user::config::flags::{AgentFlags, EXAMPLES, LogFormat};
use overlay_user::config::go_flags;
use overlay_user::datapath::probe::Probes;
use overlay_user::observe::probes;
use overlay_user::{agent, allocator};
use tracing_subscriber::EnvFilter;

/// Node agent of the overlay: leases this node's pod subnet, learns the others', keeps the kernel's
/// VXLAN state complete and accelerates pod traffic with eBPF.
#[derive(Parser)]
#[command(name = "overlayd", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: AgentFlags,
}

#[derive(Subcommand)]
enum Command {
    /// Take everything of the overlay off this node: programs, maps, device, routes, rules,
    /// subnet.env.
    ///
    /// Pods, their addresses and the bridge stay. Needs the agent to be stopped.
    Cleanup(Box<AgentFlags>),
    /// Try what this kernel can do for the fast path. Exits with 3 where it can not run.
    Probe {
        /// How to print
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Exit status of `overlayd probe` where the fast path cannot run.
const UNSUPPORTED: u8 = 3;

fn main() -> anyhow::Result<ExitCode> {
    allocator::share();
    let command = go_flags::ignore_empty_env(Cli::command());
    let arguments = go_flags::double_dashes(&command, std::env::args_os());
    let cli = Cli::from_arg_matches(&command.get_matches_from(arguments))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    match cli.command {
        Some(Command::Probe { output }) => return probe(output),
        Some(Command::Cleanup(flags)) => {
            log(flags.node.log_format);
            runtime.block_on(agent::clean_up(&flags))?;
        }
        None => {
            log(cli.flags.node.log_format);
            let result = runtime.block_on(agent::run(&cli.flags));
            // No running task has to finish, because the kernel carries the data path.
            runtime.shutdown_background();
            result?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("OVERLAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.with_target(false).with_ansi(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

fn probe(output: Output) -> anyhow::Result<ExitCode> {
    let found = Probes::all();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Table => println!("{}", probes::render(&found)),
    }
    let Err(reason) = found.verdict() else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!("the fast path cannot run here: {reason}");
    Ok(ExitCode::from(UNSUPPORTED))
}
