//! Two Bees in a row: `hello` publishes a greeting, `goodbye` answers the caller with it.

use serde::{Deserialize, Serialize};
use skep::{Message, Swarm, log};

/// What a caller sends.
#[derive(Deserialize)]
struct Name {
    name: String,
}

/// What `hello` passes on to `goodbye`.
#[derive(Serialize, Deserialize)]
struct Greeting {
    greeting: String,
}

#[skep::bee]
fn hello(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Name { name } = message.json()?;
    log::info!("greeting {name}");
    swarm.publish_json(&Greeting {
        greeting: format!("Hello {name}"),
    })?;
    Ok(())
}

#[skep::bee]
fn goodbye(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Greeting { greeting } = message.json()?;
    swarm.respond(serde_json::json!({ "message": format!("{greeting}, and goodbye!") }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::{DevSwarm, Failure};

    #[test]
    fn a_name_is_greeted() {
        let mut swarm = DevSwarm::new();
        hello(&mut swarm, Message::new(r#"{"name": "Bee"}"#)).unwrap();
        assert_eq!(swarm.published()[0].text(), r#"{"greeting":"Hello Bee"}"#);

        let greeting = swarm.take_published().remove(0);
        goodbye(&mut swarm, greeting.into()).unwrap();
        assert_eq!(swarm.responded()[0].text(), r#"{"message":"Hello Bee, and goodbye!"}"#);
    }

    #[test]
    fn what_is_not_a_name_is_rejected() {
        let error = hello(&mut DevSwarm::new(), Message::new("{}")).unwrap_err();
        assert!(matches!(error.failure(), Failure::Reject(_)), "{error}");
    }
}
