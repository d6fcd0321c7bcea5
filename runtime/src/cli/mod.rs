//! The command line: what may be typed is in [`args`], each command in a file of its own, how it ends in [`failure`].

pub mod args;
mod audit;
mod backups;
pub mod build;
mod call;
pub mod certs;
mod connect;
mod deploy;
mod doctor;
mod edges;
mod edits;
pub mod failure;
mod file_models;
mod files;
mod filter;
mod letters;
mod login;
mod models;
mod modules;
mod new;
mod nodes;
mod observe;
mod offline;
mod output;
mod pauses;
pub mod progress;
mod python;
mod secrets;
mod self_check;
mod signers;
mod state;
mod submit;
mod swarms;
mod tenants;
mod tokens;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use tracing_subscriber::EnvFilter;

use args::Cli;
pub use args::Command;
use failure::{Exit, Failure, Outcome};
use output::Printer;

use crate::settings::{self, Hidden, LogFormat};

/// The whole program.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let seen = password_typed(&matches);
        Ok((Cli::from_arg_matches(&matches)?, seen))
    });
    let (cli, seen) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            // A closed pipe after `--help | head` is no error.
            if e.use_stderr() && wants_json(std::env::args()) {
                let text = e.to_string();
                return Failure::new(Exit::Usage, text.trim_start_matches("error: ")).report(true);
            }
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    // Before any thread exists: this process limits itself, and limits are for the whole of it.
    if matches!(cli.command, Command::CompileModule) {
        return skep_engine::child_main();
    }
    if matches!(cli.command, Command::InspectModel) {
        return crate::models::child_main();
    }
    if let Command::RunTenant { parent } = cli.command {
        return skep_engine::apart::child_main(parent);
    }
    let json = cli.global.output == args::Format::Json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return Failure::new(Exit::Internal, format!("cannot start threads: {e}")).report(json),
    };
    // On the heap: the future of all commands is as large as the largest.
    let ended = runtime.block_on(Box::pin(run(cli, seen)));
    // A thread that still waits for stdin must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// Whether JSON was asked for on a line that could not be read as a whole.
fn wants_json(line: impl Iterator<Item = String>) -> bool {
    let line: Vec<String> = line.collect();
    let apart = line
        .windows(2)
        .any(|two| matches!(two[0].as_str(), "-o" | "--output") && two[1] == "json");
    apart
        || line
            .iter()
            .any(|one| matches!(one.as_str(), "-ojson" | "-o=json" | "--output=json"))
}

/// A warning where a password stands on the command line, which every user of the machine can read.
fn password_typed(matches: &ArgMatches) -> Option<String> {
    let (command, matches) = match matches.subcommand()? {
        ("self", own) => ("self", own.subcommand()?.1),
        found => found,
    };
    let typed = matches!(command, "serve" | "doctor" | "self")
        && matches.value_source("backend") == Some(ValueSource::CommandLine)
        && matches
            .get_one::<Hidden>("backend")
            .is_some_and(|Hidden(url)| settings::has_password(url));
    typed.then(|| {
        "--backend holds a password, which every user of this machine sees in `ps`: use SKEP_BACKEND or --config"
            .to_owned()
    })
}

async fn run(cli: Cli, seen: Option<String>) -> Outcome {
    let out = Printer::new(&cli.global);
    let node = login::node(cli.global.node.as_deref());
    let node = node.as_str();
    match cli.command {
        Command::Serve(args) => {
            let upload = args.upload_timeout;
            let (file, flags) = args.layer();
            let settings = settings::resolve(flags, file.as_deref())?;
            log_to_stderr("info", settings.log_format);
            let warnings = seen.into_iter().chain(settings.warnings.clone());
            warnings.for_each(|warning| tracing::warn!("{warning}"));
            Ok(Box::pin(crate::serve::run(settings.node(upload)?)).await?)
        }
        Command::Doctor(args) => Box::pin(doctor::run(*args, seen, out)).await,
        Command::Own(args::Own {
            what: args::OwnCommand::Check(args),
        }) => Box::pin(self_check::run(*args, seen, out)).await,
        Command::Demo => {
            log_to_stderr("warn", LogFormat::Text);
            Ok(Box::pin(crate::demo::run()).await?)
        }
        Command::Up(args) => {
            log_to_stderr("warn", LogFormat::Text);
            // Not at a node that one logged in to: an edit must not change what others use, unless it is named.
            let node = cli.global.node.as_deref().unwrap_or(args::NODE_DEFAULT);
            Box::pin(up::run(args, node, Printer::stderr(&cli.global))).await
        }
        // Taken care of before the runtime.
        Command::CompileModule | Command::InspectModel | Command::RunTenant { .. } => Ok(()),
        Command::Push(args) => modules::push(args, node, out).await,
        Command::Apply(args) => swarms::apply(args, node, out).await,
        Command::Deploy(args) => Box::pin(deploy::run(args, node, out)).await,
        Command::Request(args) => call::request(*args, node, out).await,
        Command::Submit(args) => submit::submit(*args, node, out).await,
        Command::Bees => modules::list(node, out).await,
        Command::Swarms => swarms::list(node, out).await,
        Command::Describe { swarm, graph } => swarms::describe(swarm, graph, node, out).await,
        Command::Logs(args) => observe::logs(args, node, out).await,
        Command::Dlq(args) => letters::dlq(args, node, out).await,
        Command::State(args) => state::run(args, node, out).await,
        Command::Pause(args) => pauses::pause(args, node, out).await,
        Command::Resume(args) => pauses::resume(args, node, out).await,
        Command::Scale(args) => swarms::scale(args, node, out).await,
        Command::Nodes => nodes::list(node, out).await,
        Command::Drain(args) => nodes::drain(args, node, out).await,
        Command::Backup(args) => backups::backup(args, node, out).await,
        Command::Restore(args) => backups::restore(args, node, out).await,
        Command::Delete(args) => swarms::delete(args, node, out).await,
        Command::DeleteModule(args) => modules::delete(args, node, out).await,
        Command::Signer(args) => signers::run(args, out).await,
        Command::Tenant(args) => tenants::tenant(args, node, out).await,
        Command::Usage(args) => tenants::usage(args, node, out).await,
        Command::Token(args) => tokens::token(args, node, out).await,
        Command::Model(args) => models::run(args, node, out).await,
        Command::Edge(args) => edges::run(args, node, out).await,
        Command::Secret(args) => secrets::run(args, node, out).await,
        Command::Audit(args) => audit::run(args, node, out).await,
        Command::Login(args) => login::run(args, out).await,
        Command::Logout => login::logout(out),
        Command::Whoami => login::whoami(node, out).await,
        Command::Certs(args) => certs::run(args, out),
        Command::Filter(args) => {
            log_to_stderr("error", LogFormat::Text);
            Box::pin(filter::run(*args, out)).await
        }
        Command::New(args) => new::run(args, out),
        Command::Check { file, graph } => offline::check(&file, graph, out),
        Command::Schema => offline::schema(out),
        Command::Completions { shell } => offline::completions(shell, out),
        Command::Version => offline::version(node, out).await,
    }
}

/// The node's own log, filtered by `SKEP_LOG` (as `RUST_LOG` elsewhere).
fn log_to_stderr(default: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_env("SKEP_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Set already when tests run several commands in one process.
    let _ = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}
