//! `skep-edge`: see the library.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use lexopt::{Arg, ValueExt as _};
use skep_edge::enrol::enroll;
use skep_edge::home::Home;
use skep_edge::line::Line;
use skep_edge::link::VERSION;
use skep_edge::node::{Edge, Settings};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
skep-edge: runs stages of Swarms far from their hub

  skep-edge enroll LINE [--data DIR] [--ca FILE] [--allow-insecure]
                     makes this machine an edge; `skep edge enroll NAME` at the hub prints LINE. `-`: from standard input
  skep-edge run [--data DIR] [--listen ADDRESS] [--threads N] [--allow-insecure]
  skep-edge status [--data DIR]                    who it is, and what it follows
  skep-edge version

  --data DIR         its folder, by default /var/lib/skep-edge; or SKEP_EDGE_DATA
  --listen ADDRESS   the door, HTTP and gRPC, by default 127.0.0.1:7700; port 0 takes a free one
  --ca FILE          certificates (PEM) to look at the hub's with, instead of the machine's
  --threads N        threads that run Bees, by default one a core
  --allow-insecure   `enroll`: a hub without TLS beyond this machine; `run`: a door that others reach, which asks nobody who they are
";

/// As of a wrong command line, of whatever program.
const USAGE: u8 = 2;

#[derive(Default)]
struct Asked {
    words: Vec<String>,
    data: Option<PathBuf>,
    ca: Option<PathBuf>,
    listen: Option<SocketAddr>,
    threads: usize,
    allow_insecure: bool,
}

fn asked() -> Result<Option<Asked>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut asked = Asked::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Short('V') | Arg::Long("version") => asked.words = vec!["version".to_owned()],
            Arg::Long("data") => asked.data = Some(parser.value()?.into()),
            Arg::Long("ca") => asked.ca = Some(parser.value()?.into()),
            Arg::Long("listen") => asked.listen = Some(parser.value()?.parse()?),
            Arg::Long("threads") => asked.threads = parser.value()?.parse()?,
            Arg::Long("allow-insecure") => asked.allow_insecure = true,
            Arg::Value(word) => asked.words.push(word.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    Ok(Some(asked))
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(Some(asked)) if !asked.words.is_empty() => asked,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Some(_)) => {
            eprint!("{HELP}");
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            eprintln!("error: {error}; see `skep-edge --help`");
            return ExitCode::from(USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .init();
    match run(asked) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(asked: Asked) -> anyhow::Result<ExitCode> {
    let data = asked
        .data
        .or_else(|| std::env::var_os("SKEP_EDGE_DATA").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("/var/lib/skep-edge"));
    let words: Vec<&str> = asked.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["version"] => println!("skep-edge {VERSION}"),
        ["status"] => status(&data)?,
        ["enroll", line] => {
            let line = match *line {
                "-" => std::io::read_to_string(std::io::stdin()).context("read the line from standard input")?,
                line => line.to_owned(),
            };
            let line: Line = line.parse()?;
            let ca = asked.ca.map(|file| {
                std::fs::read_to_string(&file).with_context(|| format!("read the certificates {}", file.display()))
            });
            let identity = runtime()?.block_on(enroll(&data, &line, ca.transpose()?, asked.allow_insecure))?;
            println!(
                "enrolled as `{}` of tenant `{}` at {}; start it with `skep-edge run --data {}`",
                identity.name,
                identity.tenant,
                identity.hub,
                data.display()
            );
        }
        ["run"] => {
            let settings = Settings {
                data,
                listen: asked.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7700))),
                allow_insecure: asked.allow_insecure,
                threads: asked.threads,
            };
            runtime()?.block_on(serve(&settings))?;
        }
        ["enroll", ..] => bail!("`enroll` takes one LINE: `skep edge enroll NAME` at the hub prints it"),
        [word, ..] => bail!("`{word}` is no command: see `skep-edge --help`"),
        [] => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// One thread beside those that run Bees: it only waits for others.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a thread")
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let edge = Box::pin(Edge::start(settings)).await?;
    // For whoever started it with port 0.
    println!("listening on http://{}", edge.listen);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    edge.stop().await
}

fn status(data: &std::path::Path) -> anyhow::Result<()> {
    let home = Home::open(data)?;
    let identity = home.identity()?;
    println!("edge      {} of tenant {}", identity.name, identity.tenant);
    println!("hub       {}", identity.hub);
    println!("processor {}", skep_engine::Target::host());
    match home.orders(&identity)? {
        None => println!("orders    none yet"),
        Some(orders) => {
            println!("orders    revision {}", orders.revision);
            for order in &orders.swarms {
                let here: Vec<&str> = order.here.iter().map(skep_model::name::StageName::as_str).collect();
                println!(
                    "  {} (revision {}): {}",
                    order.swarm.name,
                    order.revision,
                    here.join(", ")
                );
            }
        }
    }
    Ok(())
}
