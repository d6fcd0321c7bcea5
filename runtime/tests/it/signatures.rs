//! Signed modules: who may push and apply what, where a tenant has signers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use skep_node::signatures::SigningKey;
use skep_proto::v1;
use skep_proto::v1::access_client::AccessClient;
use skep_proto::v1::push_module_request::Part;
use tonic::{Code, Status};

use crate::access::{ORDERS, apply_as, ask_as, push_as, with};
use crate::node::{Node, Start, test_bees, upload};

async fn push_signed(node: &Node, token: &str, name: &str, signature: &str) -> Result<v1::PushModuleReply, Status> {
    let wasm = test_bees();
    let mut parts = upload(name, "latest", wasm, wasm.len() as u64, "");
    if let Some(Part::Header(header)) = &mut parts[0].part {
        header.signature = signature.to_owned();
    }
    let pushed = node
        .keeper()
        .await
        .push_module(with(token, tokio_stream::iter(parts)))
        .await;
    pushed.map(tonic::Response::into_inner)
}

/// What a command that must succeed prints, alone on its line.
fn printed(node: &Node, args: &[&str]) -> String {
    node.cli_ok(args).trim().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_with_signers_takes_what_one_of_them_signed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let operator = node.bootstrap();
    let (deploy, other) = (
        node.token(&operator, "acme", "deploy"),
        node.token(&operator, "other", "deploy"),
    );
    let admin = node.token(&operator, "acme", "admin");
    let invoke = node.token(&operator, "acme", "invoke");
    // From before there were signers.
    push_as(&node, &deploy, "test-bees").await.unwrap();

    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (first, second) = (file("first.key"), file("second.key"));
    let public = printed(&node, &["signer", "new", &first]);
    assert_eq!(printed(&node, &["signer", "show", &first]), public);
    assert_eq!(std::fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
    let again = node.cli(&["signer", "new", &first]);
    assert!(
        !again.status.success() && said(&again).contains("nothing was written"),
        "{}",
        said(&again)
    );
    assert_eq!(
        printed(&node, &["signer", "show", &first]),
        public,
        "the key is as it was"
    );
    let public_second = printed(&node, &["signer", "new", &second]);

    // Who deploys, or looks after the tenant, does not say who signs.
    for lesser in [&deploy, &admin, &invoke] {
        let call = v1::SetTenantRequest {
            name: "acme".to_owned(),
            add_signers: vec![public.clone()],
            ..v1::SetTenantRequest::default()
        };
        let denied = AccessClient::new(node.channel().await)
            .set_tenant(with(lesser, call))
            .await;
        assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    }
    for wrong in [
        ["--signer", "ed25519:short"],
        ["--signer", "none"],
        ["--no-signer", &public],
    ] {
        let refused = node.cli_as(&operator, &["tenant", "set", "acme", wrong[0], wrong[1]]);
        assert!(!refused.status.success(), "{wrong:?}");
    }
    let set = node.cli_ok_as(&operator, &["tenant", "set", "acme", "--signer", &public]);
    assert!(set.contains(&public), "{set}");

    // Neither what comes, nor what was there before.
    let unsigned = push_as(&node, &deploy, "test-bees").await.unwrap_err();
    assert_eq!(unsigned.code(), Code::PermissionDenied);
    assert!(
        unsigned.message().contains("has no signature") && unsigned.message().contains("--sign-key"),
        "{unsigned}"
    );
    let before = apply_as(&node, &deploy, ORDERS).await.unwrap_err();
    assert_eq!(before.code(), Code::PermissionDenied);
    assert!(before.message().contains("stage `count`"), "{before}");

    let wasm = file("test_bees.wasm");
    std::fs::write(&wasm, test_bees()).unwrap();
    let signed = printed(&node, &["signer", "sign", &first, &wasm, "--name", "test-bees"]);
    let by_second = SigningKey::read(Path::new(&second)).unwrap();
    let (name, digest) = ("test-bees".parse().unwrap(), skep_model::id::Digest::of(test_bees()));
    for (wrong, says) in [
        // Another's name, other bytes, another key's signature under the signer's name, no signature at all.
        (
            printed(&node, &["signer", "sign", &first, &wasm, "--name", "other-bees"]),
            "is not of this module",
        ),
        (
            by_second.sign(&name, &skep_model::id::Digest::of(b"x")).to_string(),
            "is not of this module",
        ),
        (
            format!(
                "{public}:{}",
                by_second.sign(&name, &digest).to_string().rsplit_once(':').unwrap().1
            ),
            "is not of this module",
        ),
        (by_second.sign(&name, &digest).to_string(), "none of them"),
        ("ed25519:".to_owned(), "a signature is written"),
        ("x".repeat(100_000), "a signature is written"),
    ] {
        let refused = push_signed(&node, &deploy, "test-bees", &wrong).await.unwrap_err();
        assert!(refused.message().contains(says), "{refused}");
    }
    // The signature of one module does not bring another in.
    let moved = push_signed(&node, &deploy, "other-bees", &signed).await.unwrap_err();
    assert!(moved.message().contains("is not of this module"), "{moved}");

    push_signed(&node, &deploy, "test-bees", &signed).await.unwrap();
    apply_as(&node, &deploy, ORDERS).await.unwrap();
    ask_as(&node, &invoke, "orders", "a").await.unwrap();
    let bees = node.cli_ok_as(&deploy, &["bees", "-o", "json"]);
    assert!(bees.contains(&public), "{bees}");

    // A key that is taken away: what runs goes on, also with other numbers, and is not applied again.
    node.cli_ok_as(
        &operator,
        &[
            "tenant",
            "set",
            "acme",
            "--signer",
            &public_second,
            "--no-signer",
            &public,
        ],
    );
    ask_as(&node, &invoke, "orders", "a").await.unwrap();
    node.cli_ok_as(&deploy, &["scale", "orders/count", "--concurrency", "2"]);
    let changed = ORDERS.replace("state: true", "state: true, timeout: 9s");
    let refused = apply_as(&node, &deploy, &changed).await.unwrap_err();
    assert!(refused.message().contains(&public), "{refused}");
    let restarted = node.stop();
    assert!(restarted.success());
    let node = Start::new(&dir.path().join("data")).start();
    ask_as(&node, &invoke, "orders", "a").await.unwrap();

    // Signed anew by the next key, by the command that users have.
    let pushed = node.cli_as(&deploy, &["push", &wasm, "--name", "test-bees", "--sign-key", &second]);
    assert!(pushed.status.success(), "{}", said(&pushed));
    apply_as(&node, &deploy, &changed).await.unwrap();
    let missing = node.cli_as(
        &deploy,
        &["push", &wasm, "--name", "test-bees", "--sign-key", &file("none.key")],
    );
    assert!(said(&missing).contains("none.key"), "{}", said(&missing));
    let no_key = node.cli_as(&deploy, &["push", &wasm, "--name", "test-bees", "--sign-key", &wasm]);
    assert!(said(&no_key).contains("no private key"), "{}", said(&no_key));

    // Others push as before.
    push_as(&node, &other, "test-bees").await.unwrap();
}
