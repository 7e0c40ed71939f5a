//! The helper sub-commands alone, for this crate's own tests.

fn main() {
    let args: Vec<_> = std::env::args_os().collect();
    match runtime::helper(&args) {
        Some(code) => std::process::exit(code),
        None => {
            eprintln!("usage: runtime-helper shim|exec|unpack");
            std::process::exit(64);
        }
    }
}
