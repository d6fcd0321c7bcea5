//! What an engine may use, and the one wasmtime configuration that compiler and node share.

use std::path::PathBuf;
use std::time::Duration;

use skep_model::limits;
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

#[cfg(feature = "compiler")]
use crate::confined::Bounds;

/// Core instances in one component, over all: a Python Bee has 64, a Rust Bee 26.
const CORE_INSTANCES_PER_COMPONENT: u32 = 200;
/// Core instances kept for each component instance, on average.
const CORE_INSTANCES_PER_SLOT: u32 = 70;
/// Tables kept for each component instance, on average. Python needs 12.
const TABLES_PER_SLOT: u32 = 14;
const TABLES_PER_COMPONENT: u32 = 60;
/// A module of 13 000 functions has a table of as many elements.
pub(crate) const TABLE_ELEMENTS_MAX: u64 = 20_000;
/// Bytes of a component instance's own record. wasmtime's default.
const COMPONENT_INSTANCE_BYTES: usize = 1 << 20;
/// Memories of one component. Toolchains make one; compositions a few.
const MEMORIES_PER_COMPONENT: u32 = 4;

/// What an engine may use. Plain data; the defaults serve a small node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Calls of Bees under way at once on this node that one tenant may have. More wait. A quarter more is for others.
    pub running: u32,
    /// Instances that wait warm for a call (prepared ahead, or pooled), all Bees together.
    pub spare: u32,
    /// Instances that one Bee keeps prepared while it is called.
    pub spare_per_bee: u32,
    /// A spare instance that was not used for this long is dropped, so idle memory returns.
    pub spare_idle: Duration,
    /// An instance that takes more CPU time to prepare than this is prepared where no call waits: on a thread that has nothing to do, of which
    /// a wake-up costs 30 to 50 us. To prepare is to make and to warm: the guest runs once, so that its first call need not copy the pages
    /// that it writes. Rust takes 15 to 60 us, CPython 500 and more.
    pub slow_to_make: Duration,
    /// The largest memory that any Bee may be given, bytes.
    pub memory_bytes_max: usize,
    /// Threads that run guest code. Zero: one a core.
    pub threads: usize,
    /// The engine starts no thread after its start: it maps modules on guest threads. For a process that may not.
    pub threads_fixed: bool,
    /// The compiler's limits.
    pub compiler: CompilerLimits,
    /// Where compiled artifacts are kept. Private to the node: mode 0700.
    pub cache_dir: PathBuf,
    /// Bytes of compiled artifacts kept there.
    pub cache_bytes: u64,
}

impl Settings {
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            running: 128,
            spare: 64,
            spare_per_bee: 2,
            spare_idle: Duration::from_secs(5),
            slow_to_make: Duration::from_micros(200),
            memory_bytes_max: limits::MEMORY_BYTES_MAX,
            threads: 0,
            threads_fixed: false,
            compiler: CompilerLimits::default(),
            cache_dir,
            cache_bytes: 4 << 30,
        }
    }

    pub(crate) fn thread_count(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn slots(&self) -> u32 {
        self.places().saturating_add(self.spare)
    }

    /// Calls under way, all tenants together.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.running.saturating_add(self.running / 4)
    }
}

/// What the compiler process may use, and what an upload may hold. Counted over the whole upload, nested components included.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct CompilerLimits {
    /// Address space, bytes. A Python component needs 365 MB.
    pub memory_bytes: u64,
    /// A JavaScript component needs 20 s on two virtual cores, 26 s when they are busy with other work, and more on a small machine.
    pub cpu_s: u64,
    /// The CPU time bounds the work; this one only ends a child that waits in vain, so a busy node is given time.
    pub wall_s: u64,
    pub artifact_bytes: u64,
    pub upload_bytes: u64,
    pub body_bytes: u64,
    /// Blocks, loops and ifs inside one another.
    pub nesting: u64,
    /// Of one function.
    pub locals: u64,
    pub functions: u64,
    pub modules: u64,
    pub components: u64,
    /// After each nested component has been expanded wherever it is instantiated.
    pub instances: u64,
    pub data_segments: u64,
    /// Initial size of all memories.
    pub memory_image_bytes: u64,
    /// Initial elements of all tables.
    pub table_elements: u64,
}

impl CompilerLimits {
    #[cfg(feature = "compiler")]
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            memory_bytes: self.memory_bytes,
            cpu_s: self.cpu_s,
            wall_s: self.wall_s,
            answer_bytes: self.artifact_bytes,
        }
    }
}

impl Default for CompilerLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 3 << 29,
            cpu_s: 60,
            wall_s: 180,
            artifact_bytes: 256 << 20,
            upload_bytes: limits::UPLOAD_BYTES_MAX as u64,
            body_bytes: 1 << 20,
            nesting: 2_000,
            locals: 5_000,
            functions: 50_000,
            modules: 100,
            components: 100,
            instances: 1_000,
            data_segments: 50_000,
            memory_image_bytes: limits::MEMORY_BYTES_MAX as u64,
            table_elements: 200_000,
        }
    }
}

/// All that decides what code comes out of the compiler, so that what one process compiled another may run.
///
/// GC, exceptions, threads and the like are switched off here rather than by cargo features, because builds of
/// wasmtime 48.0.8 without those features can abort.
fn code_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(false)
        .concurrency_support(false)
        .gc_support(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_multi_memory(true)
        .wasm_component_model(true)
        .memory_init_cow(true)
        .generate_address_map(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20));
    #[cfg(feature = "compiler")]
    config
        .strategy(wasmtime::Strategy::Cranelift)
        .cranelift_opt_level(wasmtime::OptLevel::Speed);
    config
}

/// The node's configuration. An artifact that [`compiler_config`]'s engine made fits it.
#[must_use]
pub fn config(settings: &Settings) -> Config {
    let slots = settings.slots();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .max_component_instance_size(COMPONENT_INSTANCE_BYTES)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_SLOT))
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .total_memories(slots.saturating_mul(2))
        .max_memories_per_component(MEMORIES_PER_COMPONENT)
        .max_memory_size(settings.memory_bytes_max)
        .total_tables(slots.saturating_mul(TABLES_PER_SLOT))
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .max_tables_per_module(8)
        .table_elements(usize::try_from(TABLE_ELEMENTS_MAX).unwrap_or(usize::MAX))
        .total_stacks(slots)
        // Kept small: what stays warm stays in memory. `pagemap_scan` stays off: 48.0.8 forgets pages that were
        // swapped out, so the next user of a slot could read them.
        .max_unused_warm_slots(8)
        .linear_memory_keep_resident(0);
    let mut config = code_config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// The compiler's configuration: the same code, but no pool, which would not fit in its address space.
#[cfg(feature = "compiler")]
pub(crate) fn compiler_config() -> Config {
    let mut config = code_config();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config
}
