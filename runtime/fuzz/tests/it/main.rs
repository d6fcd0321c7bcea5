//! The committed corpora, and what a few changed bytes make of them, on the stable compiler: so that no target rots, and what a fuzzer found once
//! is not let in again. `ci/fuzz` is what searches.

use std::fs;
use std::path::Path;

use skep_fuzz::memory::Counted;
use skep_fuzz::{TARGETS, Target};
use skep_model::env::SeededEntropy;

#[global_allocator]
static COUNTED: Counted = Counted;

/// Inputs made of each file.
const CHANGED: u64 = 64;
/// All corpora together: they are part of every clone.
const CORPORA_BYTES_MAX: usize = 300 << 10;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let named = |path: std::path::PathBuf| (path.display().to_string(), fs::read(&path).unwrap());
    files.into_iter().map(named).collect()
}

/// One of the usual mutations, by a seed: bits, bytes, ends, repeats, and the tail of another input.
fn changed(bytes: &[u8], other: &[u8], random: &SeededEntropy) -> Vec<u8> {
    let mut made = bytes.to_vec();
    for _ in 0..=random.next_u64() % 3 {
        let below = |n: usize| usize::try_from(random.next_u64() % n.max(1) as u64).unwrap();
        let at = below(made.len());
        match random.next_u64() % 6 {
            0 if !made.is_empty() => made[at] ^= 1 << (random.next_u64() % 8),
            1 if !made.is_empty() => made[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'0'][below(8)],
            2 => made.truncate(at),
            3 => made.insert(at, random.next_u64().to_le_bytes()[0]),
            4 => {
                let run = made[at..(at + below(32)).min(made.len())].to_vec();
                made.splice(at..at, run);
            }
            _ => {
                made.truncate(at);
                made.extend_from_slice(&other[below(other.len())..]);
            }
        }
    }
    made
}

#[test]
fn corpora_and_what_changed_bytes_make_of_them() {
    let mut all = 0;
    for target in TARGETS {
        let corpus = corpus(target);
        let (mut taken, mut fed, mut accepted) = (0, 0, 0);
        for (name, bytes) in &corpus {
            all += bytes.len();
            assert!(
                bytes.len() <= target.input_max,
                "{name} is longer than the target reads"
            );
            taken += usize::from(target.feed(bytes));
        }
        // Both ways of every door are in its corpus, or a fuzzer would learn one only.
        assert!(
            (1..corpus.len()).contains(&taken),
            "{}: {taken} of {} are let in",
            target.name,
            corpus.len()
        );
        let random = SeededEntropy::new(1);
        for (at, (_, bytes)) in corpus.iter().enumerate() {
            for n in 0..CHANGED {
                let other = &corpus[(at + usize::try_from(n).unwrap()) % corpus.len()].1;
                accepted += u64::from(target.feed(&changed(bytes, other, &random)));
                fed += 1;
            }
        }
        println!(
            "{}: {taken} of {} files let in, {accepted} of {fed} made of them",
            target.name,
            corpus.len()
        );
        assert!(accepted < fed, "{} refuses nothing", target.name);
    }
    assert!(all <= CORPORA_BYTES_MAX, "the corpora have {all} bytes");
}

#[test]
fn memory_is_counted_and_a_panic_is_not_lost() {
    let greedy = Target {
        name: "greedy",
        run: |bytes| vec![1u8; bytes.len() << 20].len() > 1,
        input_max: 8,
        memory_max: 2 << 20,
    };
    assert!(greedy.feed(b"12"));
    // Longer than it takes: passed over.
    assert!(!greedy.feed(b"123456789"));
    let refused = std::panic::catch_unwind(|| greedy.feed(b"123"));
    assert!(
        refused
            .unwrap_err()
            .downcast_ref::<String>()
            .unwrap()
            .contains("bytes of memory")
    );
    assert!(
        std::panic::catch_unwind(|| Target {
            run: |_| panic!("a defect"),
            ..greedy
        }
        .feed(b""))
        .is_err()
    );
}
