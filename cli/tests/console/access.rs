//! Who may only look: the console takes the socket beside, and says what it may not do there. Needs root, to be another user.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::fake::{Fake, Request, Run, error, ok};
use crate::samples;

const STRANGER: u32 = 61_234;

#[test]
fn the_console_takes_the_socket_that_is_open_to_its_caller() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let orders = Fake::start(|_: &Request| error(500, "unexpected"));
    let view = Fake::start(|request: &Request| match request.line.as_str() {
        "GET /v1/status" => ok(samples::status()),
        _ => error(403, "not_allowed"),
    });
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Where another user can reach it.
    let program = orders.path("vbrctl");
    std::fs::copy(env!("CARGO_BIN_EXE_vbrctl"), &program).unwrap();
    mode(orders.dir.path(), 0o755);
    mode(&orders.socket(), 0o660);
    let run = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket").arg(orders.socket()).args(words).env_remove("VBR_SOCKET").current_dir("/");
        Run::of(command.uid(STRANGER).gid(STRANGER).output().unwrap())
    };
    let away = run(&["status"]);
    assert_eq!(away.code, 4, "{away:?}");
    assert!(away.err.contains("vbrview"), "{away:?}");

    std::fs::rename(view.socket(), orders.path("vbrd-view.sock")).unwrap();
    mode(&orders.path("vbrd-view.sock"), 0o666);
    let looked = run(&["status"]);
    assert_eq!(looked.code, 0, "{looked:?}");
    let refused = run(&["job", "run", "web"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    let seen: Vec<String> = view.seen.lock().unwrap().iter().map(|request| request.line.clone()).collect();
    assert_eq!(seen[0], "GET /v1/status");
    assert!(orders.seen.lock().unwrap().is_empty());
}
