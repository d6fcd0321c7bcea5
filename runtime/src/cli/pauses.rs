//! `pause` and `resume`.

use std::time::{Duration, Instant};

use serde_json::json;
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::hold_swarm_request::Hold;

use super::args;
use super::connect::{self, Wire};
use super::failure::{Exit, Failure, Outcome};
use super::output::Printer;
use super::progress::Progress;
use crate::wording::count;

/// Between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(200);

async fn hold(beekeeper: &mut BeekeeperClient<Wire>, what: &str, hold: Hold) -> Outcome<v1::HoldSwarmReply> {
    let (swarm, stage) = what.split_once('/').unwrap_or((what, ""));
    let request = v1::HoldSwarmRequest {
        swarm: swarm.to_owned(),
        stage: stage.to_owned(),
        hold: hold.into(),
    };
    Ok(beekeeper.hold_swarm(request).await?.into_inner())
}

fn told(what: &str, did: &str, reply: &v1::HoldSwarmReply, out: Printer) -> Outcome {
    if out.json() {
        return out.document(&json!({ "already": reply.already, "paused": reply.paused }));
    }
    let already = if reply.already { " already" } else { "" };
    out.line(&format!("{what} is{already} {did}"))
}

pub async fn pause(args: args::Pause, node: &str, out: Printer) -> Outcome {
    let mut beekeeper = connect::beekeeper(node).await?;
    if args.drain {
        hold(&mut beekeeper, &args.what, Hold::Draining).await?;
        let progress = if out.json() {
            Progress::silent()
        } else {
            Progress::stderr()
        };
        let step = progress.step(format!("drain {}", args.what));
        let until = Instant::now() + args.timeout;
        loop {
            let request = v1::DescribeSwarmRequest {
                name: args.what.clone(),
                count_keys: false,
            };
            let swarm = beekeeper.describe_swarm(request).await?.into_inner();
            let left: u64 = swarm.stages.iter().map(|stage| stage.unread + stage.parked).sum();
            if left == 0 {
                break;
            }
            step.note(&format!("{} to go", count(left, "message")));
            if Instant::now() >= until {
                drop(step);
                let message = format!(
                    "{} has {} left; its doors stay closed and it drains on",
                    args.what,
                    count(left, "message")
                );
                return Err(Failure::new(Exit::Deadline, message).remedy(format!(
                    "look with `skep describe {0}`, pause it as it is, or `skep resume {0}`",
                    args.what
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        step.done("nothing is left");
    }
    let reply = hold(&mut beekeeper, &args.what, Hold::Paused).await?;
    told(&args.what, "paused", &reply, out)
}

pub async fn resume(args: args::Resume, node: &str, out: Printer) -> Outcome {
    let mut beekeeper = connect::beekeeper(node).await?;
    let reply = hold(&mut beekeeper, &args.what, Hold::None).await?;
    told(&args.what, "running", &reply, out)
}
