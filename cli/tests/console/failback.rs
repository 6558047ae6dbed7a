//! The way back: what is sent, what is asked before, what is told.

use crate::fake::{Answer, Fake, Request, error, ok};

fn branch(request: &Request) -> Answer {
    match request.line.as_str() {
        "POST /v1/failbacks/start" if request.body.contains("\"br0\"") => ok(replica("failback", "[]")),
        "POST /v1/failbacks/undo?replica=web" => error(503, "site_unreachable"),
        "POST /v1/failbacks/undo?replica=web&force=true" => {
            ok(replica("failover", "[\"branch was not asked\"]"))
        }
        "POST /v1/failbacks/commit?replica=branch%2Fweb" => {
            ok(replica("ready", "[\"at branch the VM is x\"]"))
        }
        "GET /v1/failovers/one?replica=web" => ok(replica("failing_back", "[]")),
        _ => error(404, "not_found"),
    }
}

fn replica(state: &str, warnings: &str) -> String {
    format!(
        r#"{{"schema":1,"replica":"web","site":"branch","state":"{state}","generation":3,"point":"p1","started_at":null,"vm":null,"failback":{{"since":"2026-11-27T18:00:00Z","job":"web-back","vm":"failover/dr.web-back","point":"p7"}},"warnings":{warnings}}}"#
    )
}

#[test]
fn a_vm_is_brought_back_taken_back_and_left_there() {
    let fake = Fake::start(branch);
    let run =
        fake.run(&["failback", "start", "branch/web", "--network", "lan=br0", "--shutdown-within", "2m"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    assert_eq!(run.out, "branch/web runs at branch again, as failover/dr.web-back, from p7\n");
    assert!(fake.seen.lock().unwrap()[0].body.contains("\"shutdown_ms\":120000"));
    // What throws something away is asked for.
    for words in [["failback", "undo", "web", "--no-input"], ["failback", "commit", "web", "--no-input"]] {
        assert_eq!(fake.run(&words).code, 2);
    }
    assert_ne!(fake.run(&["failback", "undo", "web", "--yes"]).code, 0);
    let run = fake.run(&["failback", "undo", "web", "--yes", "--force"]);
    assert!(run.code == 0 && run.err.contains("branch was not asked"), "{run:?}");
    let run = fake.run(&["failback", "commit", "branch/web", "--yes"]);
    assert!(run.code == 0 && run.err.contains("at branch the VM is x"), "{run:?}");
    let run = fake.run(&["failover", "show", "web"]);
    assert!(
        run.out.contains("failing_back") && run.out.contains("ordered to be started at branch"),
        "{run:?}"
    );
}
