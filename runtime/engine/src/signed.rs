//! Compiled modules that cross machines: made and signed by a hub, verified by an edge that has no compiler.
//!
//! Loading native code runs it with the rights of the process, so nothing is loaded that the hub did not say of *this* module, for *this* kind of
//! engine and processor. A file is
//! ```text
//! magic (8) | length of the statement (4, little-endian) | statement (JSON) | Ed25519 signature of it (64) | native code
//! ```
//! The statement has the SHA-256 of the native code, so one signature covers both. A MAC, as [`crate::ArtifactCache`] has it, won't do here: who
//! can check one can make one, and an edge that was taken over could then write code for all others.
//!
//! Against older code of the same module [`Expected::native`] helps: the hub's orders, which only ever go forward, name the code by its digest.

use std::io::{self, Read, Write as _};

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use skep_model::id::Digest;

use crate::artifact::{Artifact, memory_file, seal};
use crate::target::{TERMS, Target};

const MAGIC: &[u8; 8] = b"skepedg1";
/// Keeps what is signed here apart from all else that the hub's key signs.
const PURPOSE: &[u8] = b"skep edge artifact 1\n";
/// A statement has some 600 bytes.
const STATEMENT_BYTES_MAX: usize = 4 << 10;
const SIGNATURE_BYTES: usize = 64;
const CHUNK_BYTES: usize = 64 << 10;

/// The public half of a hub's key: Ed25519 (RFC 8032).
pub type HubKey = [u8; 32];

/// What a hub says of native code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    /// Of wasmtime, and of our settings: see `target.rs`.
    terms: String,
    target: Target,
    /// Of the component that the code was made of.
    module: Digest,
    /// Of the code.
    native: Digest,
    bytes: u64,
}

/// What an edge was told to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub module: Digest,
    /// The code itself, as the orders name it.
    pub native: Digest,
    /// No more than this is read, bytes.
    pub bytes_max: u64,
}

/// Why signed code is not loaded. It is worth nothing then: fetch it again.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it is no signed artifact of a version that this program reads: bring hub and edge to the same version")]
    Form,
    #[error("it ends after {found} bytes of {expected}: it was cut short; fetch it again")]
    Truncated { found: u64, expected: u64 },
    #[error(
        "its signature is not by the key of the hub that this edge was enrolled with: it is forged, damaged or another hub's; \
         enrol the edge again if the hub's key has changed"
    )]
    Forged,
    #[error("it is of the module {found}, and {expected} is wanted")]
    OtherModule { found: Digest, expected: Digest },
    #[error(
        "it is not the code that the hub's present orders name but older or other code of that module; fetch it again"
    )]
    Stale,
    #[error("it was compiled for `{found}`, this program runs `{own}`: bring hub and edge to the same version")]
    OtherEngine { found: String, own: &'static str },
    #[error("it does not run on this processor: {0}; let the edge report to its hub, which then compiles anew")]
    WrongCpu(String),
    #[error("its code is not what its signature is of: it was changed or damaged; fetch it again")]
    Altered,
    #[error("it has {found} bytes of code, the limit is {max}")]
    TooLarge { found: u64, max: u64 },
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
}

/// The digest of an artifact's native code, by which orders name it.
///
/// # Errors
/// It shares code with other modules, and so does not cross machines; or the system's.
pub fn digest(artifact: &Artifact) -> io::Result<Digest> {
    if artifact.shared().is_some() {
        return Err(io::Error::other(
            "its libraries were compiled apart: compile it whole for an edge",
        ));
    }
    let mut file = artifact.own().open()?;
    let mut sha = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Digest(sha.finalize().into())),
            got => sha.update(&chunk[..got]),
        }
    }
}

/// Writes an artifact with what the hub says of it. `sign` is the hub's key: Ed25519 over the bytes that it is given.
///
/// # Errors
/// As [`digest`], and where `out` fails.
pub fn write(
    artifact: &Artifact,
    module: Digest,
    target: &Target,
    sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    out: &mut impl io::Write,
) -> io::Result<()> {
    let statement = serde_json::to_vec(&Statement {
        terms: TERMS.to_owned(),
        target: target.clone(),
        module,
        native: digest(artifact)?,
        bytes: artifact.len(),
    })?;
    out.write_all(MAGIC)?;
    let length = u32::try_from(statement.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&statement)?;
    out.write_all(&sign(&[PURPOSE, &statement].concat()))?;
    io::copy(&mut artifact.own().open()?, out)?;
    Ok(())
}

/// What a signed artifact says that it is: of which module, for what, and the digest of its native code. Nothing of that is verified: for who made it.
///
/// # Errors
/// It is none, or of an engine that this build does not compile for.
pub fn about(file: &mut impl Read) -> Result<(Digest, Target, Digest), Refused> {
    let (said, _) = head(file)?;
    let statement: Statement = serde_json::from_slice(&said[PURPOSE.len()..]).map_err(|_| Refused::Form)?;
    if statement.terms != TERMS {
        return Err(Refused::OtherEngine {
            found: statement.terms,
            own: TERMS,
        });
    }
    Ok((statement.module, statement.target, statement.native))
}

/// What is signed, and the signature.
fn head(file: &mut impl Read) -> Result<(Vec<u8>, [u8; SIGNATURE_BYTES]), Refused> {
    let mut head = [0; MAGIC.len() + 4];
    fill(file, &mut head)?;
    let (magic, length) = head.split_at(MAGIC.len());
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if magic != MAGIC || length > STATEMENT_BYTES_MAX {
        return Err(Refused::Form);
    }
    let mut said = PURPOSE.to_vec();
    said.resize(PURPOSE.len() + length, 0);
    fill(file, &mut said[PURPOSE.len()..])?;
    let mut signature = [0; SIGNATURE_BYTES];
    fill(file, &mut signature)?;
    Ok((said, signature))
}

/// Verifies a signed artifact as it is copied into a sealed memory file, so that nobody can change it between check and use.
///
/// # Errors
/// All that a hostile or damaged file can be: see [`Refused`]. Nothing of it was run.
pub fn open(file: &mut impl Read, hub: &HubKey, expected: Expected, host: &Target) -> Result<Artifact, Refused> {
    let (said, signature) = head(file)?;
    UnparsedPublicKey::new(&ED25519, hub)
        .verify(&said, &signature)
        .map_err(|_| Refused::Forged)?;
    // Only now is it the hub's word.
    let statement: Statement = serde_json::from_slice(&said[PURPOSE.len()..]).map_err(|_| Refused::Form)?;
    if statement.module != expected.module {
        return Err(Refused::OtherModule {
            found: statement.module,
            expected: expected.module,
        });
    }
    if statement.terms != TERMS {
        return Err(Refused::OtherEngine {
            found: statement.terms,
            own: TERMS,
        });
    }
    if let Some(missing) = statement.target.missing_on(host) {
        return Err(Refused::WrongCpu(missing));
    }
    if statement.native != expected.native {
        return Err(Refused::Stale);
    }
    if statement.bytes > expected.bytes_max {
        return Err(Refused::TooLarge {
            found: statement.bytes,
            max: expected.bytes_max,
        });
    }
    let mut copy = memory_file("skep-artifact")?;
    let mut sha = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    // One byte more than there may be shows that there is more.
    let mut rest = file.take(statement.bytes + 1);
    let mut found = 0;
    loop {
        let got = rest.read(&mut chunk)?;
        if got == 0 {
            break;
        }
        found += got as u64;
        sha.update(&chunk[..got]);
        copy.write_all(&chunk[..got])?;
    }
    if found < statement.bytes {
        return Err(Refused::Truncated {
            found,
            expected: statement.bytes,
        });
    }
    if found > statement.bytes || Digest(sha.finalize().into()) != statement.native {
        return Err(Refused::Altered);
    }
    Ok(Artifact::new(seal(copy)?, None))
}

fn fill(file: &mut impl Read, into: &mut [u8]) -> Result<(), Refused> {
    let expected = into.len() as u64;
    let mut found = 0;
    while found < into.len() {
        match file.read(&mut into[found..]) {
            Ok(0) => {
                return Err(Refused::Truncated {
                    found: found as u64,
                    expected,
                });
            }
            Ok(got) => found += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;
    use crate::artifact::Sealed;
    use crate::target::Cpu;

    const CODE: &[u8] = b"\x7fELF, or so it says";

    fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn public(key: &Ed25519KeyPair) -> HubKey {
        key.public_key().as_ref().try_into().unwrap()
    }

    fn sign(key: &Ed25519KeyPair, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        key.sign(bytes).as_ref().try_into().unwrap()
    }

    fn module() -> Digest {
        Digest::of(b"a component")
    }

    fn expected() -> Expected {
        Expected {
            module: module(),
            native: Digest::of(CODE),
            bytes_max: 1 << 20,
        }
    }

    fn plain() -> Target {
        Target {
            cpu: Cpu::X86_64,
            features: BTreeSet::new(),
        }
    }

    fn file(key: &Ed25519KeyPair, target: &Target, code: &[u8]) -> Vec<u8> {
        let artifact = Artifact::new(Sealed::of("code", code).unwrap(), None);
        let mut out = Vec::new();
        write(&artifact, module(), target, |bytes| sign(key, bytes), &mut out).unwrap();
        out
    }

    fn opened(file: &[u8], hub: &HubKey, expected: Expected) -> Result<Vec<u8>, String> {
        let artifact = open(&mut &*file, hub, expected, &plain()).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        artifact.own().open().unwrap().read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    /// A statement that the hub signs though `write` would not make it.
    fn stated(key: &Ed25519KeyPair, statement: &[u8], code: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(u32::try_from(statement.len()).unwrap().to_le_bytes());
        out.extend(statement);
        out.extend(sign(key, &[PURPOSE, statement].concat()));
        out.extend(code);
        out
    }

    #[test]
    fn what_the_hub_signed_is_given_back_byte_for_byte() {
        let hub = key(1);
        let file = file(&hub, &plain(), CODE);
        assert_eq!(opened(&file, &public(&hub), expected()).unwrap(), CODE);
        let about = about(&mut &*file).unwrap();
        assert_eq!(about, (module(), plain(), Digest::of(CODE)));
    }

    #[test]
    fn another_hubs_word_counts_for_nothing() {
        let said = opened(&file(&key(2), &plain(), CODE), &public(&key(1)), expected()).unwrap_err();
        assert!(said.contains("not by the key of the hub"), "{said}");
    }

    #[test]
    fn older_code_of_the_same_module_is_refused_though_it_is_signed() {
        let hub = key(1);
        let said = opened(&file(&hub, &plain(), b"older code"), &public(&hub), expected()).unwrap_err();
        assert!(said.contains("older or other code"), "{said}");
    }

    #[test]
    fn code_of_another_module_is_refused() {
        let hub = key(1);
        let other = Expected {
            module: Digest::of(b"another"),
            ..expected()
        };
        let said = opened(&file(&hub, &plain(), CODE), &public(&hub), other).unwrap_err();
        assert!(said.contains("it is of the module"), "{said}");
    }

    #[test]
    fn code_for_another_processor_is_refused_and_says_what_is_missing() {
        let hub = key(1);
        let arm = Target {
            cpu: Cpu::Aarch64,
            ..plain()
        };
        let said = opened(&file(&hub, &arm, CODE), &public(&hub), expected()).unwrap_err();
        assert!(said.contains("it is for aarch64 processors, this is x86-64"), "{said}");
        let newer = Target {
            features: ["avx512f".to_owned()].into(),
            ..plain()
        };
        let said = opened(&file(&hub, &newer, CODE), &public(&hub), expected()).unwrap_err();
        assert!(said.contains("avx512f"), "{said}");
    }

    #[test]
    fn code_of_another_wasmtime_is_refused() {
        let hub = key(1);
        let statement = serde_json::to_vec(&Statement {
            terms: "wasmtime 47, skep code 1".to_owned(),
            target: plain(),
            module: module(),
            native: Digest::of(CODE),
            bytes: CODE.len() as u64,
        })
        .unwrap();
        let said = opened(&stated(&hub, &statement, CODE), &public(&hub), expected()).unwrap_err();
        assert!(
            said.contains("`wasmtime 47, skep code 1`") && said.contains("same version"),
            "{said}"
        );
    }

    #[test]
    fn more_code_than_there_may_be_is_not_read() {
        let hub = key(1);
        let small = Expected {
            bytes_max: 3,
            ..expected()
        };
        let said = opened(&file(&hub, &plain(), CODE), &public(&hub), small).unwrap_err();
        assert!(said.contains("the limit is 3"), "{said}");
    }

    #[test]
    fn a_statement_in_another_form_is_refused_though_it_is_signed() {
        let hub = key(1);
        for statement in [&b"{}"[..], b"", b"\xff", &[b'['; STATEMENT_BYTES_MAX + 1]] {
            let said = opened(&stated(&hub, statement, CODE), &public(&hub), expected()).unwrap_err();
            assert!(said.contains("no signed artifact of a version"), "{said}");
        }
    }

    #[test]
    fn cut_short_anywhere_it_is_refused() {
        let hub = key(1);
        let whole = file(&hub, &plain(), CODE);
        for length in 0..whole.len() {
            let said = opened(&whole[..length], &public(&hub), expected()).unwrap_err();
            assert!(said.contains("cut short"), "{length}: {said}");
        }
    }

    #[test]
    fn with_anything_behind_its_end_it_is_refused() {
        let hub = key(1);
        let mut longer = file(&hub, &plain(), CODE);
        longer.push(0);
        let said = opened(&longer, &public(&hub), expected()).unwrap_err();
        assert!(said.contains("changed or damaged"), "{said}");
    }

    proptest! {
        #[test]
        fn no_changed_byte_is_let_in(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let hub = key(1);
            let mut changed = file(&hub, &plain(), CODE);
            let at = at.index(changed.len());
            changed[at] ^= flip;
            prop_assert!(opened(&changed, &public(&hub), expected()).is_err());
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
            let mut file = if magic { MAGIC.to_vec() } else { Vec::new() };
            file.extend(bytes);
            prop_assert!(opened(&file, &public(&key(1)), expected()).is_err());
        }
    }
}
