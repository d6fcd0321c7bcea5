//! The program `skep`.

/// Messages are allocated on one thread and freed on another, all the time. The C library's allocator took 29 % of a busy node's CPU for
/// that, most of it in locks and in joining free pieces. Without huge pages (`no_thp`), which hold 25 MB of an idle node.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    skep_node::cli::main()
}
