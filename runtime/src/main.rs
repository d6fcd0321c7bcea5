fn main() -> std::process::ExitCode {
    skep_node::cli::main()
}
