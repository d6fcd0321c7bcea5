//! Two builds of skep beside each other: what a change costs a request. For whoever made it: `skep-bench versus OLD NEW TEST_BEES_WASM`.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use crate::load;
use crate::node::{self, Server};
use crate::report::{PAYLOAD_BYTES, ROUNDS, Row, SPAN, count, middle, us};

const ECHO: &str = "
name: echo
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
";

struct Side {
    skep: Server,
    rates: Vec<f64>,
    /// CPU time of a request, ns.
    costs: Vec<f64>,
    times: Vec<Duration>,
}

pub async fn measure(builds: [&Path; 2], wasm: &[u8], dir: &Path) -> anyhow::Result<Vec<Row>> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let mut sides = Vec::new();
    for (n, build) in builds.into_iter().enumerate() {
        let skep = Server::skep(build, &dir.join(format!("side-{n}")))?;
        let mut keeper = skep.keeper().await?;
        node::push(&mut keeper, "test-bees", wasm).await?;
        node::apply(&mut keeper, ECHO).await?;
        load::pipelined(&skep.url, "echo", &payload, 64, SPAN).await?;
        sides.push(Side {
            skep,
            rates: Vec::new(),
            costs: Vec::new(),
            times: Vec::new(),
        });
    }
    for _ in 0..2 * ROUNDS {
        for side in &mut sides {
            let before = side.skep.cpu()?;
            let rate = load::pipelined(&side.skep.url, "echo", &payload, 64, SPAN).await?;
            let used = side.skep.cpu()? - before;
            side.costs.push(used.as_nanos() as f64 / (rate * SPAN.as_secs_f64()));
            side.rates.push(rate);
            side.times.push(load::median(
                &mut load::one_by_one(&side.skep.url, "echo", &payload, 0, SPAN / 3).await?,
            )?);
        }
    }
    let figures = |side: &mut Side| -> anyhow::Result<(f64, f64, Duration)> {
        Ok((
            middle(&mut side.rates),
            middle(&mut side.costs),
            load::median(&mut side.times)?,
        ))
    };
    let (old, new) = (figures(&mut sides[0])?, figures(&mut sides[1])?);
    let row = |measure, ours: String, ceiling: String, ratio: f64| Row {
        measure,
        ours,
        ceiling,
        ratio: format!("{ratio:.3} ×"),
        goal: "–",
        met: true,
    };
    Ok(vec![
        row("requests/s, 64 in flight", count(new.0), count(old.0), new.0 / old.0),
        row(
            "CPU time of a request",
            format!("{:.1} us", new.1 / 1e3),
            format!("{:.1} us", old.1 / 1e3),
            new.1 / old.1,
        ),
        row(
            "a request alone, p50",
            us(new.2),
            us(old.2),
            new.2.as_secs_f64() / old.2.as_secs_f64(),
        ),
    ])
}
