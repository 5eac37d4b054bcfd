//! The CNI plugin `overlay-cni`, which also answers under the name `flannel`. A container runtime
//! runs it; see [`overlay_user::cni`].

use std::env;
use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use overlay_user::cni;
use overlay_user::cni::install::Install;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

const HELP: &str = "\
overlay-cni: CNI plugin of the overlay, in place of flannel's `flannel`, `bridge` and `host-local`.

A container runtime runs it, with CNI_COMMAND and its companions in the environment and the
configuration on standard input. It belongs in /opt/cni/bin, and is named by the `type` of a
plugin in /etc/cni/net.d/*.conflist: `overlay-cni install` puts both there (see its --help).
OVERLAY_LOG=debug makes it say more on standard error; OVERLAY_DEADLINE is how many seconds a
call may take (30).
";

fn main() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_none() {
        return match env::args().nth(1).as_deref() {
            Some("install") => install(),
            argument => introduce(argument),
        };
    }
    // Standard output is the answer, so logs go to standard error, which the runtime stores in its
    // log.
    let filter = EnvFilter::try_from_env("OVERLAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .init();

    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(cni::answer(|name| env::var(name).ok(), io::stdin())) {
        Ok(answer) => {
            if let Some(answer) = answer {
                println!("{answer}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<Runtime, ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| {
        eprintln!("overlay-cni: cannot start: {error}");
        ExitCode::FAILURE
    })
}

fn install() -> ExitCode {
    let install = Install::parse_from(env::args().skip(2));
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(install.run()) {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overlay-cni install: {error}");
            ExitCode::FAILURE
        }
    }
}

fn introduce(argument: Option<&str>) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    if matches!(argument, Some("--version" | "-V")) {
        println!("overlay-cni {version}");
        return ExitCode::SUCCESS;
    }
    let spoken = cni::versions();
    let spoken = spoken.supported_versions().iter().map(ToString::to_string);
    let spoken = spoken.collect::<Vec<_>>().join(", ");
    println!("{HELP}\nVersion {version}. CNI versions spoken: {spoken}.");
    ExitCode::SUCCESS
}
