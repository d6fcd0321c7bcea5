//! Inspection takes little memory, whatever it is given. An integration test, since it counts every allocation of its process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use skep_inference::{Limits, inspect};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is handed on to the system's allocator; the counters are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `inspect` took at most, and whether it took the model.
fn cost(bytes: &[u8]) -> (usize, bool) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let taken = inspect(bytes, &Limits::default()).is_ok();
    (PEAK.load(Ordering::Relaxed) - before, taken)
}

fn sample(name: &str) -> Vec<u8> {
    let path = format!("{}/../../samples/models/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A graph of fields that are as empty as they may be: two bytes each, and the most of each kind that can be.
fn hollow(field: u8, number: usize) -> Vec<u8> {
    let graph: Vec<u8> = std::iter::repeat_n([field << 3 | 2, 0], number).flatten().collect();
    let mut bytes = vec![8, 8, 66, 2, 16, 15, 58];
    let mut length = graph.len();
    while length > 127 {
        bytes.push(length as u8 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(graph);
    bytes
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn memory_is_a_small_multiple_of_the_file() {
    for name in ["digits-mlp", "cancer-forest", "cancer-mlp", "iris"] {
        let bytes = sample(name);
        let (took, taken) = cost(&bytes);
        assert!(taken && took <= 64 * 1024, "{name}: {took} bytes");
    }
    // Nodes, initializers, inputs, outputs, values: none is a model, and none takes more than the bound on what it unpacks to lets it.
    for field in [1, 5, 11, 12, 13, 14] {
        let bytes = hollow(field, 2_000_000);
        let (took, taken) = cost(&bytes);
        assert!(
            !taken && took <= 16 * bytes.len(),
            "field {field}: {took} bytes for {}",
            bytes.len()
        );
    }
    let mut random = SmallRng::seed_from_u64(3);
    let seeds = [
        sample("iris"),
        sample("wine"),
        sample("cancer-mlp"),
        sample("cancer-linear"),
    ];
    let mut taken = 0;
    for _ in 0..100_000 {
        let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..4) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] = 0xff,
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let end = (at + random.random_range(1..64)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let (took, ok) = cost(&bytes);
        assert!(
            took <= 16 * bytes.len() + (16 << 10),
            "{took} bytes for {}",
            bytes.len()
        );
        taken += usize::from(ok);
    }
    assert!(taken > 1_000, "{taken} were models");
}
