//! How fast a model is through all this, beside the same model called natively: for the benchmark's report.
//!
//! Everything of one [`Measured`] comes from one process and one moment; rounds of what is compared alternate, so that a machine whose speed
//! drifts drifts for both. Figures are medians of rounds.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use skep_model::tensor::{Tensor, TensorType};

use crate::{Backend, Batcher, Bounds, InferError, Limits, Model, Named, Policy, Subject, Threads};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Question {
    /// Callers at once, each with one row.
    pub callers: usize,
    /// Whose callers those are, evenly: rows of two tenants are never in one run.
    pub tenants: usize,
    pub rounds: usize,
    /// How long one round of many callers goes on.
    pub span: Duration,
    /// Threads of the model runtime, and of tokio for the callers.
    pub threads: usize,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            callers: 64,
            tenants: 1,
            rounds: 5,
            span: Duration::from_millis(400),
            threads: 1,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub backend: &'static str,
    pub model: String,
    /// One row, and as many rows as there are callers, by the model itself.
    pub native_one: Duration,
    pub native_many: Duration,
    /// One row through an idle batcher: from async code, and from a thread that may block.
    pub idle_async: Duration,
    pub idle_blocking: Duration,
    pub unbatched: Rate,
    pub batched: Rate,
    pub callers: usize,
    pub tenants: usize,
    /// Rows of a run, on average, where calls were batched.
    pub rows_per_run: f64,
}

/// Of many callers: calls a second, and the time from answer to answer that nineteen in twenty had at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub calls_per_s: f64,
    pub p95: Duration,
}

impl Measured {
    /// How many times more rows a second the model itself does if it gets many at once.
    #[must_use]
    pub fn native_gain(&self) -> f64 {
        self.callers as f64 * self.native_one.as_secs_f64() / self.native_many.as_secs_f64()
    }

    /// How many times more calls a second batching answers.
    #[must_use]
    pub fn gain(&self) -> f64 {
        self.batched.calls_per_s / self.unbatched.calls_per_s
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        writeln!(f, "{} on {}", self.model, self.backend)?;
        writeln!(
            f,
            "  one row: native {:.1} us, through an idle batcher {:.1} us (async), {:.1} us (blocking)",
            us(self.native_one),
            us(self.idle_async),
            us(self.idle_blocking)
        )?;
        writeln!(
            f,
            "  {} rows natively: {:.1} us, gain {:.2}",
            self.callers,
            us(self.native_many),
            self.native_gain()
        )?;
        writeln!(
            f,
            "  {} callers of {} tenants, unbatched: {:.0}/s, p95 {:.0} us",
            self.callers,
            self.tenants,
            self.unbatched.calls_per_s,
            us(self.unbatched.p95)
        )?;
        write!(
            f,
            "  {} callers of {} tenants, batched:   {:.0}/s, p95 {:.0} us, gain {:.2} ({:.2} of the native), {:.1} rows a run",
            self.callers,
            self.tenants,
            self.batched.calls_per_s,
            us(self.batched.p95),
            self.gain(),
            self.gain() / self.native_gain(),
            self.rows_per_run
        )
    }
}

/// Measures one model on one backend. Takes some seconds.
///
/// # Errors
/// The model cannot be loaded or run, or takes something else than numbers with fractions.
pub fn measure(name: &str, backend: &dyn Backend, bytes: &Bytes, question: &Question) -> Result<Measured, InferError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(question.threads.max(1))
        .enable_time()
        .build();
    let runtime = runtime.map_err(|error| InferError::Unreadable(error.to_string()))?;
    let threads = Threads::start(question.threads).map_err(|error| InferError::Unreadable(error.to_string()))?;
    let load = || Model::load(backend, bytes, &Limits::default());
    let native = load()?;
    let batcher = |policy| Ok::<_, InferError>(Batcher::new(load()?, policy, Bounds::default(), Arc::clone(&threads)));
    let (batched, unbatched) = (
        batcher(Policy {
            max_rows: question.callers,
            ..Policy::default()
        })?,
        batcher(Policy::off())?,
    );
    let (one, many) = (zeros(&native, 1)?, zeros(&native, question.callers as u64)?);
    let subject = Subject::named("measure");
    let mut rounds: [Vec<Duration>; 4] = Default::default();
    let (mut slow, mut fast) = (Vec::new(), Vec::new());
    let before = batched.stats();
    for _ in 0..question.rounds.max(1) {
        rounds[0].push(median_of(|| native.run(&one).map(drop))?);
        rounds[1].push(median_of(|| native.run(&many).map(drop))?);
        rounds[2].push(runtime.block_on(async {
            let mut times = Vec::with_capacity(SAMPLES);
            let until = Instant::now() + SPAN;
            while times.len() < SAMPLES && Instant::now() < until {
                let (inputs, begun) = (one.clone(), Instant::now());
                batched.infer(subject, inputs, None).await?;
                times.push(begun.elapsed());
            }
            Ok::<_, InferError>(middle(&mut times))
        })?);
        rounds[3].push(median_of(|| {
            batched.infer_blocking(subject, one.clone(), None).map(drop)
        })?);
    }
    let lone = batched.stats();
    for _ in 0..question.rounds.max(1) {
        slow.push(runtime.block_on(crowd(&unbatched, &one, question))?);
        fast.push(runtime.block_on(crowd(&batched, &one, question))?);
    }
    let after = batched.stats();
    debug_assert!(lone.runs > before.runs);
    let mut times = rounds.into_iter().map(|mut round| middle(&mut round));
    let mut next = || times.next().unwrap_or_default();
    Ok(Measured {
        backend: native.backend(),
        model: name.to_owned(),
        native_one: next(),
        native_many: next(),
        idle_async: next(),
        idle_blocking: next(),
        unbatched: median_rate(slow),
        batched: median_rate(fast),
        callers: question.callers,
        tenants: question.tenants,
        rows_per_run: (after.run_rows.sum - lone.run_rows.sum) as f64 / (after.runs - lone.runs).max(1) as f64,
    })
}

/// Runs whose median is one round's figure, and how long they may take.
const SAMPLES: usize = 300;
const SPAN: Duration = Duration::from_millis(500);

fn median_of(mut run: impl FnMut() -> Result<(), InferError>) -> Result<Duration, InferError> {
    let mut times = Vec::with_capacity(SAMPLES);
    let until = Instant::now() + SPAN;
    while times.len() < SAMPLES && Instant::now() < until {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed());
    }
    Ok(middle(&mut times))
}

fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn median_rate(mut rates: Vec<Rate>) -> Rate {
    rates.sort_by(|one, other| one.calls_per_s.total_cmp(&other.calls_per_s));
    let mut tails: Vec<Duration> = rates.iter().map(|rate| rate.p95).collect();
    Rate {
        calls_per_s: rates.get(rates.len() / 2).map_or(0.0, |rate| rate.calls_per_s),
        p95: middle(&mut tails),
    }
}

async fn crowd(batcher: &Arc<Batcher>, one: &Named, question: &Question) -> Result<Rate, InferError> {
    let begun = Instant::now();
    let until = begun + question.span;
    let callers: Vec<_> = (0..question.callers)
        .map(|caller| {
            let (batcher, one) = (Arc::clone(batcher), one.clone());
            let tenant = caller % question.tenants.max(1);
            tokio::spawn(async move {
                let subject = Subject::named(&format!("tenant-{tenant}"));
                let mut times = Vec::new();
                // From one answer to the next: what a caller waits for its thread, while others' runs are on it, counts too.
                let mut answered = Instant::now();
                while answered < until {
                    batcher.infer(subject, one.clone(), None).await?;
                    times.push(answered.elapsed());
                    answered = Instant::now();
                    // A caller that is answered at once would else keep its thread from the others.
                    tokio::task::yield_now().await;
                }
                Ok::<_, InferError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.map_err(|_| InferError::Stopping)??);
    }
    let took = begun.elapsed();
    times.sort_unstable();
    let p95 = times.get(times.len() * 95 / 100).copied().unwrap_or_default();
    Ok(Rate {
        calls_per_s: times.len() as f64 / took.as_secs_f64(),
        p95,
    })
}

fn zeros(model: &Model, rows: u64) -> Result<Named, InferError> {
    let made = |port: &skep_model::tensor::Port| {
        let shape: Vec<u64> = port
            .shape
            .iter()
            .enumerate()
            .map(|(at, dim)| dim.unwrap_or(if at == 0 { rows } else { 1 }))
            .collect();
        let elements = shape.iter().product::<u64>() as usize;
        let tensor = Tensor::new(TensorType::Fp32, shape, Bytes::from(vec![0; elements * 4]))?;
        Ok::<_, InferError>((port.name.clone(), tensor))
    };
    model.signature().inputs.iter().map(made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tract::Tract;
    use crate::sample;

    #[test]
    fn a_measure_has_all_its_figures() {
        let question = Question {
            callers: 8,
            tenants: 2,
            rounds: 1,
            span: Duration::from_millis(20),
            threads: 1,
        };
        let measured = measure("iris", &Tract::new(), &sample::read("iris"), &question).unwrap();
        for time in [
            measured.native_one,
            measured.native_many,
            measured.idle_async,
            measured.idle_blocking,
            measured.batched.p95,
        ] {
            assert!(time > Duration::ZERO);
        }
        assert!(measured.batched.calls_per_s > 0.0 && measured.rows_per_run >= 1.0);
        assert!(measured.to_string().contains("iris on tract"));
    }
}
