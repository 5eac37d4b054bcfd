//! The agent: takes this node's lease, learns the others', and keeps both paths programmed.

mod cleanup;
mod fast_path;
mod flows;
mod health;
mod kernel_path;
mod node;
mod reconciler;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use overlay_user::config::flags::{AgentFlags, EXAMPLES, LogFormat};
use overlay_user::config::go_flags;
use overlay_user::datapath::probe::{Answer, Probes};
use overlay_user::observe::table;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Node agent of the overlay: leases this node's pod subnet, learns the others', keeps the kernel's VXLAN state
/// complete and accelerates pod traffic with eBPF.
#[derive(Parser)]
#[command(name = "overlayd", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: AgentFlags,
}

#[derive(Subcommand)]
enum Command {
    /// Take everything of the overlay off this node: programs, maps, device, routes, rules, subnet.env.
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

/// What `overlayd probe` exits with where the fast path cannot run.
const UNSUPPORTED: u8 = 3;

fn main() -> anyhow::Result<ExitCode> {
    let command = go_flags::ignore_empty_env(Cli::command());
    let arguments = go_flags::double_dashes(&command, std::env::args_os());
    let cli = Cli::from_arg_matches(&command.get_matches_from(arguments))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    match cli.command {
        Some(Command::Probe { output }) => probe(output),
        Some(Command::Cleanup(flags)) => {
            log(flags.node.log_format);
            runtime.block_on(cleanup::run(&flags))?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            log(cli.flags.node.log_format);
            cli.flags.check()?;
            let result = runtime.block_on(run(&cli.flags));
            // Whatever still runs has nothing to finish: the data path is the kernel's.
            runtime.shutdown_background();
            result.map(|()| ExitCode::SUCCESS)
        }
    }
}

async fn run(flags: &AgentFlags) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    let agent = node::run(flags, cancel.clone());
    tokio::pin!(agent);
    tokio::select! {
        result = &mut agent => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: the data path stays as it is");
    cancel.cancel();
    tokio::select! {
        result = agent => result,
        // Who asks twice is in a hurry.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
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
    let probes = Probes::run();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&probes)?),
        Output::Table => {
            let rows = probes.0.iter().map(|probe| {
                let answer = match &probe.answer {
                    Answer::Yes => "yes".to_owned(),
                    Answer::No(detail) => format!("no: {detail}"),
                    Answer::Error(detail) => format!("error: {detail}"),
                };
                let needed = if probe.needed { "needed" } else { "optional" };
                vec![
                    probe.feature.to_owned(),
                    probe.since.to_owned(),
                    needed.to_owned(),
                    answer,
                ]
            });
            println!(
                "{}",
                table::render(&["feature", "since Linux", "", "here"], rows)
            );
        }
    }
    match probes.verdict() {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(reason) => {
            eprintln!("the fast path cannot run here: {reason}");
            Ok(ExitCode::from(UNSUPPORTED))
        }
    }
}
