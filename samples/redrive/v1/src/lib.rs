//! Sums orders by customer, and panics where an amount is not a number: the mistake that this sample is about.

use serde::Deserialize;
use serde_json::Value;
use skep::{Message, Swarm};

#[derive(Deserialize)]
struct Order {
    order: u64,
    customer: String,
    amount: Value,
}

#[skep::bee]
fn totals(swarm: &mut Swarm, message: Message) -> skep::Result {
    let order: Order = message.json()?;
    let amount = order.amount.as_f64().expect("an amount is a number");
    let total = swarm.state().get_json::<f64>("total")?.unwrap_or(0.0) + amount;
    swarm.state().put_json("total", &total)?;
    swarm.publish_json(&serde_json::json!({ "order": order.order, "customer": order.customer, "total": total }))?;
    Ok(())
}

/// Keeps the last total that it was told of, and how many times.
#[skep::bee]
fn bill(swarm: &mut Swarm, message: Message) -> skep::Result {
    let times = swarm.state().get_json::<u64>("times")?.unwrap_or(0);
    swarm.state().put_json("times", &(times + 1))?;
    swarm.state().put("last", message.payload())?;
    Ok(())
}
