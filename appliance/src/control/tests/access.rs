//! Who may look and who may order, over real sockets and real credentials.

use super::*;
use crate::control::access::{Groups, VIEW_GROUP};

/// Asks as another user: in a thread that gives its identity away. Needs root.
fn ask_as(socket: &Path, uid: u32, groups: &[u32], method: &str, path: &str) -> (u16, Value) {
    use std::io::{Read, Write};
    let (socket, groups) = (socket.to_owned(), groups.to_vec());
    let line =
        format!("{method} {path} HTTP/1.1\r\nHost: vbrd\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let asked = std::thread::spawn(move || {
        use rustix::process::{Gid, Uid};
        let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups).expect("groups");
        let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("gid");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("uid");
        let mut stream = match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(error) => return (0, Value::from(error.kind().to_string())),
        };
        stream.write_all(line.as_bytes()).expect("request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answer");
        let split = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("head");
        let status = std::str::from_utf8(&answer[9..12]).expect("status").parse().expect("status");
        (status, serde_json::from_slice(&answer[split + 4..]).unwrap_or(Value::Null))
    });
    asked.join().expect("asked")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_socket_answers_questions_and_takes_no_order() {
    let dir = tempfile::tempdir().expect("dir");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("mode");
    let audit = Arc::new(AuditLog::open(&dir.path().join("audit")).expect("log"));
    let fake = Arc::new(Fake::default());
    let mut api = Api::new(orders(&fake), CancellationToken::new());
    api.audit = Some(audit.clone());
    let (main, view) = (dir.path().join("v.sock"), dir.path().join("v-view.sock"));
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(serve(api.clone(), bind(&main).expect("bind")));
    tracker.spawn(serve(api, super::super::socket::bind_view(&view).expect("bind")));

    // Whoever may order may look there, and no more than that.
    assert_eq!(call(&view, "GET", "/v1/cache", "").await.0, 200);
    let (status, answer) = call(&view, "POST", "/v1/jobs/web/run", "").await;
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("not_allowed")));
    assert!(answer["error"]["next_step"].as_str().is_some_and(|next| next.contains("vbradm")), "{answer}");
    // Content of disks, secrets of others, and questions that are handed on without being known here.
    for path in ["/v1/restore-points/export?point=web@latest", "/v1/notify", "/v1/config", "/v1/nothing"] {
        assert_eq!(call(&view, "GET", path, "").await.0, 403, "{path}");
    }
    assert!(fake.taken().is_empty());
    let entries = audit.read(None, 9).expect("read");
    let told = |entry: &AuditEntry| (entry.method.clone(), entry.outcome.clone(), entry.caller.pid);
    let own = Some(std::process::id() as i32);
    assert_eq!(told(&entries[0]), ("POST".into(), "not_allowed".into(), own));
    assert_eq!(entries.len(), 5);

    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Another user: kept out of the one by its mode, answered by the other where its groups say so.
    let stranger = 61_234;
    assert_eq!(ask_as(&main, stranger, &[], "GET", "/v1/cache").0, 0);
    let (status, answer) = ask_as(&view, stranger, &[], "GET", "/v1/cache");
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("not_allowed")));
    assert!(answer["error"]["next_step"].as_str().is_some_and(|next| next.contains(VIEW_GROUP)), "{answer}");
    assert_eq!(audit.read(None, 99).expect("read").len(), 5, "strangers do not fill the audit log");
    if let Some(group) = Groups::of_system().view {
        assert_eq!(ask_as(&view, stranger, &[7, group], "GET", "/v1/cache").0, 200);
        assert_eq!(ask_as(&view, stranger, &[7, group], "DELETE", "/v1/jobs/web").0, 403);
        assert_eq!(ask_as(&main, stranger, &[group], "GET", "/v1/cache").0, 0);
    }
}

#[tokio::test]
async fn the_kernel_tells_the_groups_of_a_caller() {
    use std::os::fd::AsFd;
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let told = crate::control::access::peer_groups(one.as_fd()).expect("groups");
    let own: Vec<u32> =
        rustix::process::getgroups().expect("own").into_iter().map(|group| group.as_raw()).collect();
    assert_eq!(told, own);
}
