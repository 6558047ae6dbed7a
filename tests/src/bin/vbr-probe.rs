//! Tries, from inside of a sandbox, what it should deny. Used by `vbr-system-test`; see [`vbr_tests::system::probe`].

use std::process::ExitCode;

use vbr_tests::system::probe;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => print!("{}", probe::run_all()),
        Some("--effective-user") => println!("{}", rustix::process::geteuid().as_raw()),
        Some(name) => match probe::run_one(name) {
            Some(said) => println!("{said}"),
            None => {
                eprintln!("vbr-probe: no attempt is called {name}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}
