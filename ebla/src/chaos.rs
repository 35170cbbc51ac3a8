//! The program `ebla-chaos`: as `ebla`, but its servers die, fail or wait at the places that
//! `EBLA_FAILPOINTS` names. Never for data that anybody wants to keep.

fn main() -> std::process::ExitCode {
    ebla::main()
}
