//! What the whole-system tests of outgoing HTTP upload.

use skep::http::Request;
use skep::{Message, Swarm};

/// `METHOD URL [body]`: responds with the status and what was answered, or with the code of the error.
#[skep::bee]
fn fetch(swarm: &mut Swarm, message: Message) -> skep::Result {
    let asked = message.text()?;
    let mut words = asked.splitn(3, ' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let request = Request::new(method, url)
        .header("x-from", "a bee")
        .body(words.next().unwrap_or_default());
    match request.send() {
        Ok(answer) => {
            let kind = answer.header("Content-Type").unwrap_or_default().into_owned();
            swarm.respond(format!(
                "{} {kind} {}",
                answer.status(),
                String::from_utf8_lossy(answer.body())
            ));
        }
        Err(e) => swarm.respond(format!("error {}", e.code())),
    }
    Ok(())
}

/// Sends, then fails: what was sent is sent again at the next attempt.
#[skep::bee]
fn twice(_swarm: &mut Swarm, message: Message) -> skep::Result {
    Request::post(message.text()?).body("charge").send()?;
    Err(skep::Error::fail("after", "the request was sent"))
}
