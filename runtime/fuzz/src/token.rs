//! What a caller shows: tokens, and the proof of one node to another.

use skep_model::access::{PeerKey, Secret, SecretHash, TOKEN_BYTES, TokenId};
use skep_model::env::SeededEntropy;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut taken = false;
    if let Some(secret) = Secret::parse(text) {
        // One token has one spelling, so a list of those that leaked can be searched for.
        assert_eq!(secret.text(), text);
        assert_eq!(text.len(), TOKEN_BYTES);
        assert!(
            !format!("{} {}", secret.id, secret.hash()).contains(&text[18..82]),
            "the secret is shown"
        );
        taken = true;
    }
    if let Ok(id) = text.parse::<TokenId>() {
        assert_eq!(id.to_string(), text);
        taken = true;
    }
    if let Ok(hash) = text.parse::<SecretHash>() {
        assert_eq!(hash.to_string(), text);
        taken = true;
    }
    if let Some(key) = PeerKey::parse(text) {
        assert_eq!(key.to_hex(), text);
        assert!(key.proves(&key.proof("/p", 7), "/p", 7));
        taken = true;
    }
    let key = PeerKey::random(&SeededEntropy::new(1));
    // Who does not have the key proves nothing, but for what the key's holder said.
    if key.proves(text, "/p", 1_000_000) {
        assert_eq!(text, key.proof("/p", 1_000_000), "proven in another spelling");
        taken = true;
    }
    taken
}
