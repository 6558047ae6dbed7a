//! Orders for other sites and of other sites, and what the audit log keeps of them.

use tokio::io::AsyncWriteExt;

use super::*;

/// Another site, as far as the API sees it.
struct Elsewhere;

impl ConsoleOrders for Elsewhere {
    fn forward<'a>(&'a self, site: &'a str, order: RemoteOrder) -> Answer<'a, RemoteAnswer> {
        Box::pin(async move {
            if order.path == "/v1/replicas/verify" {
                std::future::pending::<()>().await;
            }
            if site == "gone" {
                return Err(Problem::new("site_unreachable", "site gone", "no link", "wait").retry());
            }
            let user = order.user.unwrap_or_default();
            let (status, body) = match order.path.as_str() {
                "/v1/jobs/none/run" => (
                    404,
                    json!({"schema": 1, "error": {"code": "not_found", "what": "a", "why": "b", "next_step": "c", "retry": false}}),
                ),
                path => (
                    200,
                    json!({"schema": 1, "path": path, "method": order.method, "user": user, "body": order.body.len()}),
                ),
            };
            let content_type = "application/json".to_owned();
            Ok(RemoteAnswer { status, content_type, body: body.to_string().into_bytes() })
        })
    }
}

fn api(fake: &Arc<Fake>, dir: &Path) -> (Api, Arc<AuditLog>) {
    let audit = Arc::new(AuditLog::open(&dir.join("audit")).expect("log"));
    let mut api = Api::new(orders(fake), CancellationToken::new());
    api.console = Some(Arc::new(Elsewhere));
    api.audit = Some(audit.clone());
    (api, audit)
}

async fn at(socket: &Path, site: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    // The header goes into the line's place: the client of these tests knows none.
    let path = format!("{path} HTTP/1.1\r\nvbr-site: {site}\r\nX-Rest:");
    call(socket, method, &path, body).await
}

#[tokio::test]
async fn orders_for_other_sites_are_handed_on_and_entered() {
    let dir = tempfile::tempdir().expect("dir");
    let fake = Arc::new(Fake::default());
    let (api, audit) = api(&fake, dir.path());
    let socket = dir.path().join("s.sock");
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(serve(api, bind(&socket).expect("bind")));
    let s = socket.as_path();

    let (status, answer) = at(s, "branch", "POST", "/v1/jobs/web/run?x=1", "{}").await;
    assert_eq!((status, &answer["path"], &answer["body"]), (200, &json!("/v1/jobs/web/run?x=1"), &json!(2)));
    let user = super::super::socket::user_name(rustix::process::getuid().as_raw()).unwrap_or_default();
    assert_eq!(answer["user"], user);
    assert_eq!(at(s, "branch", "GET", "/v1/status", "").await.1["path"], "/v1/status");
    assert_eq!(at(s, "branch", "POST", "/v1/jobs/none/run", "").await.0, 404);
    assert_eq!(at(s, "gone", "POST", "/v1/jobs/web/run", "").await.0, 503);
    assert_eq!(at(s, "../x", "POST", "/v1/jobs/web/run", "").await.0, 400);
    assert!(fake.taken().is_empty(), "an order for another site was carried out here");
    call(s, "POST", "/v1/peers/join", r#"{"code":"secret","name":"dr"}"#).await;

    let entries = audit.read(None, 99).expect("read");
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.site.as_deref(), entry.path.as_str(), entry.outcome.as_str(), entry.status))
        .collect();
    assert_eq!(
        told,
        [
            (Some("branch"), "/v1/jobs/web/run?x=1", "done", 200),
            (Some("branch"), "/v1/jobs/none/run", "not_found", 404),
            (Some("gone"), "/v1/jobs/web/run", "site_unreachable", 503),
            (Some("../x"), "/v1/jobs/web/run", "invalid", 400),
            (None, "/v1/peers/join", "not_allowed", 403),
        ]
    );
    assert_eq!(entries[0].route.as_deref(), Some("/v1/jobs/{name}/run"));
    assert_eq!(entries[0].caller.pid, Some(std::process::id() as i32));
    assert_eq!(Value::Object(entries[4].details.clone()), json!({"name": "dr"}));
}

#[tokio::test]
async fn a_caller_that_leaves_is_entered_too() {
    let dir = tempfile::tempdir().expect("dir");
    let (api, audit) = api(&Arc::default(), dir.path());
    let socket = dir.path().join("s.sock");
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(serve(api, bind(&socket).expect("bind")));
    let mut stream = tokio::net::UnixStream::connect(&socket).await.expect("connect");
    let head = "POST /v1/replicas/verify HTTP/1.1\r\nHost: vbrd\r\nvbr-site: dr\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("head");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(audit.read(None, 9).expect("read").is_empty());
    drop(stream);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let entries = audit.read(None, 9).expect("read");
        if let Some(entry) = entries.first() {
            assert_eq!((entry.outcome.as_str(), entry.status), ("abandoned", 0));
            return;
        }
        assert!(std::time::Instant::now() < end, "the order was not entered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn orders_of_other_sites_take_the_same_routes_behind_the_list() {
    let dir = tempfile::tempdir().expect("dir");
    let fake = Arc::new(Fake::default());
    let (api, audit) = api(&fake, dir.path());
    let console = RemoteConsole::new(api);
    let ask = |method: &str, path: &str, body: &str| {
        let remote = Remote { peer: "hq".into(), peer_id: "id".into(), user: Some("ann".into()) };
        let (method, path, body) = (method.to_owned(), path.to_owned(), body.as_bytes().to_vec());
        let order = RemoteOrder { method, path, body, user: None };
        let console = console.clone();
        async move { console.answer(remote, order).await }
    };
    let cache = ask("GET", "/v1/cache", "").await;
    assert_eq!((cache.status, cache.content_type.as_str()), (200, "application/json"));
    assert_eq!(ask("POST", "/v1/jobs/web/run", "").await.status, 404);
    assert_eq!(fake.taken(), ["run web false"]);
    for (method, path, body) in [
        ("POST", "/v1/peers/invite", ""),
        ("POST", "/v1/peers/hq/grant", r#"{"manage":true}"#),
        ("GET", "/v1/restore-points/export?point=web@latest", ""),
        ("GET", "/v1/jobs/web/seed?disk=0", ""),
        ("DELETE", "/v1/restore-points/one?point=web@latest&force=true", ""),
        ("POST", "/v1/state/export", r#"{"passphrase":"correct horse"}"#),
        ("POST", "/v1/jobs", r#"{"name":"a","target":"dr","disks":[{"path":"/etc/shadow","format":"raw"}]}"#),
        ("PATCH", "/v1/jobs/a", r#"{"change":{"disks":[{"path":"/etc/shadow","format":"raw"}]}}"#),
        ("PATCH", "/v1/jobs/a", r#"{"change":{"hook":"rm"}}"#),
    ] {
        let answer = ask(method, path, body).await;
        assert_eq!(answer.status, 403, "{method} {path}");
        assert!(String::from_utf8_lossy(&answer.body).contains("not_allowed"));
    }
    let taken: Vec<String> = fake.taken().into_iter().filter(|order| !order.starts_with("vms")).collect();
    assert!(taken.is_empty(), "{taken:?}");
    assert_eq!(ask("GET", "/v1/nothing", "").await.status, 404);
    assert_eq!(ask("GET", "no path at all", "").await.status, 400);
    assert_eq!(ask("PATCH", "/v1/jobs/a", r#"{"change":{"keep":3}}"#).await.status, 404);

    let entries = audit.read(None, 99).expect("read");
    let first = &entries[0];
    assert_eq!((first.path.as_str(), first.outcome.as_str()), ("/v1/jobs/web/run", "not_found"));
    assert_eq!((first.caller.peer.as_deref(), first.caller.user.as_deref()), (Some("hq"), Some("ann")));
    assert_eq!((first.caller.uid, first.caller.peer_id.as_deref()), (None, Some("id")));
    let refused = entries.iter().filter(|entry| entry.outcome == "not_allowed").count();
    assert_eq!(refused, 9);
}
