//! The program `ebla`; everything of it is in the library beside.

fn main() -> std::process::ExitCode {
    ebla::main()
}
