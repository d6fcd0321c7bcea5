//! See `skep_engine::child_main`.

fn main() -> std::process::ExitCode {
    skep_engine::child_main()
}
