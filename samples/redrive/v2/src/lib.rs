//! As the first version, without its mistake: an amount may be text.

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
    let amount = match &order.amount {
        Value::String(text) => text.parse()?,
        other => other
            .as_f64()
            .ok_or_else(|| skep::Error::reject("the amount is neither number nor text"))?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DevSwarm;

    #[test]
    fn amounts_are_numbers_or_text() {
        let mut swarm = DevSwarm::new();
        for (amount, total) in [("2.5", 2.5), ("\"1.5\"", 4.0)] {
            let order = format!(r#"{{"order": 1, "customer": "ann", "amount": {amount}}}"#);
            swarm.deliver(totals, Message::new(order).with_key("ann")).unwrap();
            assert_eq!(swarm.stored("ann", "total"), Some(total_text(total).as_bytes()));
        }
        let refused = swarm.deliver(totals, Message::new(r#"{"order": 1, "customer": "ann", "amount": []}"#));
        assert!(matches!(refused.unwrap_err().failure(), skep::Failure::Reject(_)));
    }

    fn total_text(total: f64) -> String {
        serde_json::json!(total).to_string()
    }
}
