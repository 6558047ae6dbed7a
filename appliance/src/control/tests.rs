use std::collections::BTreeSet;
use std::sync::Mutex;

use client::call;
use serde_json::{Value, json};
use vbr_api::*;

use super::*;
use crate::block::BlockRead;

mod access;
mod remote;

/// Carries out nothing; answers enough to see that orders arrive and answers leave.
#[derive(Default)]
struct Fake {
    orders: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, order: impl Into<String>) {
        self.orders.lock().expect("orders").push(order.into());
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.orders.lock().expect("orders"))
    }
}

fn gone(what: &str) -> Problem {
    Problem::not_found(what.to_owned(), "look elsewhere")
}

fn job(spec: JobSpec) -> Job {
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    Job {
        spec,
        created_at,
        running: None,
        last_session: None,
        last_state: None,
        last_success_at: None,
        rpo_lag_ms: None,
        next_run_at: None,
        pending_retry: None,
    }
}

impl SiteOrders for Fake {
    fn status(&self) -> Result<Status, Problem> {
        Err(Problem::new("starting", "status", "still starting", "try again").retry())
    }
    fn config(&self) -> Result<ConfigView, Problem> {
        Ok(ConfigView { file: None, toml: "[site]".into() })
    }
    fn cache(&self) -> Result<CacheStats, Problem> {
        Ok(CacheStats { packs: 7, ..CacheStats::default() })
    }
    fn metrics(&self) -> Result<String, Problem> {
        Ok("vbr_info 1\n".into())
    }
}

impl PeerOrders for Fake {
    fn list(&self) -> Result<Vec<Peer>, Problem> {
        Ok(Vec::new())
    }
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite> {
        self.note(format!("invite {:?}", request.valid_ms));
        Box::pin(async { Ok(Invite { code: "code".into(), expires_at: jiff::Timestamp::UNIX_EPOCH }) })
    }
    fn join(&self, _: JoinRequest) -> Answer<'_, Peer> {
        Box::pin(async { Err(Problem::not_allowed("the code", "was used before", "ask for a new one")) })
    }
    fn revoke<'a>(&'a self, name: &'a str) -> Answer<'a, Peer> {
        Box::pin(async move { Err(gone(name)) })
    }
    fn grant<'a>(&'a self, name: &'a str, request: GrantRequest) -> Answer<'a, Peer> {
        self.note(format!("grant {name} {:?} {:?}", request.quota_bytes, request.max_points));
        Box::pin(async move { Err(gone(name)) })
    }
    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        self.note(format!("remove peer {name}"));
        Box::pin(async { Ok(()) })
    }
}

impl HostOrders for Fake {
    fn list(&self) -> Result<Vec<Host>, Problem> {
        Ok(vec![Host { name: "local".into(), driver: "disk".into(), ..Host::default() }])
    }
    fn add(&self, host: Host) -> Result<(Host, bool), Problem> {
        let new = host.name != "local";
        Ok((host, new))
    }
    fn remove(&self, name: &str) -> Result<(), Problem> {
        Err(Problem::conflict(name.to_owned(), "it is built in", "leave it"))
    }
    fn power(&self, request: &PowerRequest) -> Result<(), Problem> {
        self.note(format!("power {} {:?}", request.vm, request.power));
        Ok(())
    }
    fn vms(&self, host: Option<&str>) -> Result<Vec<Vm>, Problem> {
        self.note(format!("vms {host:?}"));
        Ok(Vec::new())
    }
}

impl HousekeepingOrders for Fake {
    fn tasks(&self) -> Result<Vec<Task>, Problem> {
        Ok(Vec::new())
    }
    fn task(&self, name: &str) -> Result<Task, Problem> {
        Err(gone(name))
    }
    fn run_task(&self, name: &str) -> Result<Task, Problem> {
        self.note(format!("run task {name}"));
        Err(gone(name))
    }
    fn job_log(&self, name: &str, query: &JobLogQuery) -> Result<Vec<JobLogEntry>, Problem> {
        self.note(format!("log {name} {:?} {:?} {:?}", query.session, query.lines, query.after));
        Ok(Vec::new())
    }
    fn hooks(&self) -> Result<Vec<NotifyHook>, Problem> {
        Ok(Vec::new())
    }
    fn test_hook(&self, name: &str) -> Result<NotifyHook, Problem> {
        Err(gone(name))
    }
}

impl DoctorOrders for Fake {
    fn examine(&self) -> Result<Vec<Check>, Problem> {
        Ok(vec![Check::warning("clock", "nobody sets it", "run a time service")])
    }
    fn try_disks(&self, disks: &[String]) -> Result<Vec<Check>, Problem> {
        self.note(format!("try {disks:?}"));
        Ok(disks.iter().map(|disk| Check::ok(format!("disk {disk}"), "readable")).collect())
    }
}

impl JobOrders for Fake {
    fn create(&self, spec: JobSpec) -> Result<(Job, bool), Problem> {
        Ok((job(spec), true))
    }
    fn list(&self) -> Result<Vec<Job>, Problem> {
        panic!("a bug in an order must not take the daemon down")
    }
    fn show(&self, name: &str) -> Result<Job, Problem> {
        Err(gone(name))
    }
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<Job, Problem> {
        self.note(format!("{name} {enabled}"));
        Err(gone(name))
    }
    fn edit(&self, name: &str, edit: JobEdit) -> Result<Job, Problem> {
        self.note(format!("edit {name} {} {}", Value::from(edit.change), edit.drop_disks));
        Err(gone(name))
    }
    fn remove(&self, _: &str) -> Result<(), Problem> {
        Ok(())
    }
    fn run<'a>(&'a self, name: &'a str, request: RunRequest) -> Answer<'a, Session> {
        self.note(format!("run {name} {}", request.allow_live));
        Box::pin(async move { Err(gone(name)) })
    }
    fn plan<'a>(&'a self, name: &'a str) -> Answer<'a, Plan> {
        Box::pin(async move { Err(gone(name)) })
    }
    fn seed(&self, name: &str, disk: u16) -> Result<Export, Problem> {
        self.note(format!("seed {name} {disk}"));
        Err(gone(name))
    }
    fn history(&self, _: &str) -> Result<Vec<Session>, Problem> {
        Ok(Vec::new())
    }
    fn sessions(&self, job: Option<&str>, active: bool) -> Result<Vec<Session>, Problem> {
        self.note(format!("sessions {job:?} {active}"));
        Ok(Vec::new())
    }
    fn session(&self, id: &str) -> Result<Session, Problem> {
        Err(gone(id))
    }
    fn cancel(&self, id: &str) -> Result<Session, Problem> {
        Err(gone(id))
    }
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Session> {
        self.note(format!("wait {id} {}", at_most.as_millis()));
        Box::pin(std::future::pending())
    }
    fn repositories(&self) -> Result<Vec<Repository>, Problem> {
        Ok(Vec::new())
    }
    fn repository(&self, job: &str) -> Result<Repository, Problem> {
        Err(gone(job))
    }
    fn repository_verify<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport> {
        Box::pin(async move { Err(gone(job)) })
    }
    fn repository_rebuild<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport> {
        Box::pin(async move { Err(gone(job)) })
    }
}

impl ThrottleOrders for Fake {
    fn list(&self) -> Result<Throttles, Problem> {
        Ok(Throttles { items: Vec::new(), peers: Vec::new() })
    }
    fn set(&self, spec: ThrottleSpec) -> Answer<'_, (Throttle, bool)> {
        self.note(format!("throttle {} {}", spec.name, spec.rate_bps));
        Box::pin(async { Ok((Throttle { spec, in_force: true, changes_at: None, configured: false }, true)) })
    }
    fn clear(&self, name: Option<String>) -> Answer<'_, Vec<String>> {
        self.note(format!("clear {name:?}"));
        Box::pin(async { Ok(name.into_iter().collect()) })
    }
}

impl WarmOrders for Fake {
    fn order(&self, request: WarmRequest) -> Result<Warming, Problem> {
        self.note(format!("warm {:?} {:?}", request.path, request.replica));
        Err(gone("warming"))
    }
    fn list(&self) -> Result<Vec<Warming>, Problem> {
        Ok(Vec::new())
    }
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Warming> {
        self.note(format!("warming {id} {at_most:?}"));
        Box::pin(async move { Err(gone(id)) })
    }
    fn cancel(&self, id: &str) -> Result<Warming, Problem> {
        self.note(format!("cancel warming {id}"));
        Err(gone(id))
    }
}

impl FailoverOrders for Fake {
    fn list(&self) -> Result<Vec<Failover>, Problem> {
        Ok(Vec::new())
    }
    fn show(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        Err(gone(&replica.to_string()))
    }
    fn start(&self, point: &PointRef, request: &FailoverRequest) -> Result<Failover, Problem> {
        self.note(format!("failover {point} {:?} {}", request.memory_bytes, request.networks.len()));
        Err(gone(&point.to_string()))
    }
    fn test(
        &self,
        point: &PointRef,
        request: &TestRequest,
        _: &dyn Fn() -> bool,
    ) -> Result<BootTest, Problem> {
        self.note(format!("test {point} {:?}", request.expect));
        Err(gone(&point.to_string()))
    }
    fn planned<'a>(&'a self, request: PlannedRequest) -> Answer<'a, Failover> {
        self.note(format!("planned {}", request.start.point));
        Box::pin(async move { Err(gone(&request.start.point)) })
    }
    fn fail_back<'a>(&'a self, request: FailbackRequest) -> Answer<'a, Failover> {
        self.note(format!("fail back {}", request.start.point));
        Box::pin(async move { Err(gone(&request.start.point)) })
    }
    fn undo_failback<'a>(&'a self, replica: ReplicaRef, force: bool) -> Answer<'a, Failover> {
        self.note(format!("undo failback {replica} {force}"));
        Box::pin(async move { Err(gone(&replica.to_string())) })
    }
    fn commit_failback<'a>(&'a self, replica: ReplicaRef) -> Answer<'a, Failover> {
        self.note(format!("commit failback {replica}"));
        Box::pin(async move { Err(gone(&replica.to_string())) })
    }
    fn undo(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        self.note(format!("undo {replica}"));
        Err(gone(&replica.to_string()))
    }
    fn commit(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        self.note(format!("commit {replica}"));
        Err(gone(&replica.to_string()))
    }
}

impl ReplicaOrders for Fake {
    fn replicas(&self) -> Result<Vec<Replica>, Problem> {
        Ok(Vec::new())
    }
    fn replica(&self, replica: &ReplicaRef) -> Result<Replica, Problem> {
        Err(gone(&replica.to_string()))
    }
    fn remove_replica(&self, replica: &ReplicaRef) -> Result<Removed, Problem> {
        Ok(Removed { removed: vec![replica.to_string()], ..Removed::default() })
    }
    fn verify_replica(&self, _: &ReplicaRef) -> Result<Vec<VerifyReport>, Problem> {
        Ok(Vec::new())
    }
    fn points(&self, replica: Option<&ReplicaRef>) -> Result<Vec<RestorePoint>, Problem> {
        self.note(format!("points {:?}", replica.map(ToString::to_string)));
        Ok(Vec::new())
    }
    fn point(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        Err(gone(&point.to_string()))
    }
    fn remove_point(&self, point: &PointRef, force: bool) -> Result<Removed, Problem> {
        let overridden = force.then(|| "newest".to_owned()).into_iter().collect();
        Ok(Removed { removed: vec![point.to_string()], overridden })
    }
    fn pin_point(&self, point: &PointRef, request: PinRequest) -> Result<RestorePoint, Problem> {
        self.note(format!("pin {point} {:?}", request.for_ms));
        Err(gone(&point.to_string()))
    }
    fn unpin_point(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        self.note(format!("unpin {point}"));
        Err(gone(&point.to_string()))
    }
    fn verify_point(&self, point: &PointRef) -> Result<VerifyReport, Problem> {
        Err(gone(&point.to_string()))
    }
    fn export(&self, point: &PointRef, disk: u16) -> Result<Export, Problem> {
        if disk > 0 {
            return Err(gone(&point.to_string()));
        }
        Ok(Box::new(|sink| {
            sink(0, b"data").map_err(|e| Problem::io("sink", &e))?;
            Ok(4)
        }))
    }
    fn read_disk(&self, point: &PointRef, _: u16) -> Result<Box<dyn BlockRead>, Problem> {
        Err(gone(&point.to_string()))
    }
}

struct Site {
    _dir: tempfile::TempDir,
    socket: std::path::PathBuf,
    fake: Arc<Fake>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// All orders by one fake.
fn orders(fake: &Arc<Fake>) -> Orders {
    Orders {
        site: fake.clone(),
        peers: fake.clone(),
        hosts: fake.clone(),
        jobs: fake.clone(),
        replicas: fake.clone(),
        throttle: fake.clone(),
        housekeeping: fake.clone(),
        warmings: fake.clone(),
        failovers: fake.clone(),
        doctor: fake.clone(),
    }
}

fn site() -> Site {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("s.sock");
    let fake = Arc::new(Fake::default());
    let shutdown = CancellationToken::new();
    let api = Api::new(orders(&fake), shutdown.clone());
    let bound = bind(&socket).expect("bind");
    let tracker = tokio_util::task::TaskTracker::new();
    let served = tracker.spawn(serve(api, bound));
    Site { _dir: dir, socket, fake, shutdown, served }
}

/// A client of a few lines: one request a connection.
mod client {
    use std::path::Path;

    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    pub async fn raw(socket: &Path, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = tokio::net::UnixStream::connect(socket).await.expect("connect");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: vbrd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("head");
        // A server that refuses a long body may close before it has read all of it.
        drop(stream.write_all(body).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        let split = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("head of answer");
        let status = std::str::from_utf8(&answer[9..12]).expect("status").parse().expect("status");
        (status, answer[split + 4..].to_vec())
    }

    pub async fn call(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = raw(socket, method, path, body.as_bytes()).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

#[tokio::test]
async fn orders_arrive_and_answers_carry_the_schema() {
    let site = site();
    let s = site.socket.as_path();
    assert_eq!(call(s, "GET", "/v1/cache", "").await.1["packs"], 7);
    assert_eq!(call(s, "GET", "/v1/cache", "").await.1["schema"], 1);
    assert_eq!(call(s, "GET", "/v1/peers", "").await, (200, json!({"schema": 1, "items": []})));
    let spec = json!({"name": "web", "target": "dr", "disks": [{"path": "/d", "format": "raw"}]});
    let (status, made) = call(s, "POST", "/v1/jobs", &spec.to_string()).await;
    assert_eq!((status, &made["name"], &made["enabled"]), (201, &json!("web"), &json!(true)));
    assert_eq!(call(s, "DELETE", "/v1/jobs/web", "").await.1["removed"], json!(["web"]));
    assert_eq!(call(s, "POST", "/v1/hosts", r#"{"name":"local","driver":"disk"}"#).await.0, 200);
    assert_eq!(call(s, "POST", "/v1/hosts", r#"{"name":"h2","driver":"disk"}"#).await.0, 201);
    assert_eq!(call(s, "GET", "/v1/hosts/local", "").await.1["driver"], "disk");
    let report = call(s, "GET", "/v1/doctor", "").await.1;
    let wanted = json!([{"name": "clock", "state": "warning", "found": "nobody sets it", "next_step": "run a time service"}]);
    assert_eq!((&report["schema"], &report["checks"]), (&json!(1), &wanted));
    let tried = call(s, "POST", "/v1/doctor/disks", r#"{"disks":["/a"]}"#).await.1;
    assert_eq!(tried["checks"][0]["name"], "disk /a");
    let removed = call(s, "DELETE", "/v1/restore-points/one?point=b1/web@latest", "").await;
    assert_eq!(removed.1, json!({"schema": 1, "removed": ["b1/web@latest"]}));
    let forced = call(s, "DELETE", "/v1/restore-points/one?point=web@latest&force=true", "").await;
    assert_eq!(forced.1["overridden"], json!(["newest"]));
    site.fake.taken();
    call(s, "POST", "/v1/restore-points/pin?point=web@latest", r#"{"for_ms":5}"#).await;
    call(s, "POST", "/v1/restore-points/unpin?point=web@latest", "").await;
    call(s, "POST", "/v1/peers/b1/grant", r#"{"quota_bytes":7}"#).await;
    let wanted = ["pin web@latest Some(5)", "unpin web@latest", "grant b1 Some(7) None"];
    assert_eq!(site.fake.taken(), wanted);

    site.fake.taken();
    call(s, "POST", "/v1/jobs/web/run", "").await;
    call(s, "POST", "/v1/jobs/web/run", r#"{"allow_live":true}"#).await;
    call(s, "POST", "/v1/jobs/web/disable", "").await;
    call(s, "PATCH", "/v1/jobs/web", r#"{"change":{"keep":null}}"#).await;
    call(s, "GET", "/v1/sessions?job=web&active=true", "").await;
    call(s, "GET", "/v1/sessions", "").await;
    call(s, "GET", "/v1/restore-points?replica=web", "").await;
    call(s, "POST", "/v1/peers/invite", "").await;
    let rule = r#"{"name":"office","rate_bps":5000000}"#;
    assert_eq!(call(s, "POST", "/v1/throttle", rule).await.0, 201);
    assert_eq!(call(s, "DELETE", "/v1/throttle/office", "").await.1["removed"], json!(["office"]));
    call(s, "DELETE", "/v1/throttle", "").await;
    call(s, "POST", "/v1/cache/warm", r#"{"path":"/a"}"#).await;
    call(s, "GET", "/v1/cache/warm/a-1?wait_ms=90000", "").await;
    call(s, "POST", "/v1/cache/warm/a-1/cancel", "").await;
    let taken = site.fake.taken();
    assert_eq!(
        taken,
        [
            "run web false",
            "run web true",
            "web false",
            "edit web {\"keep\":null} false",
            "sessions Some(\"web\") true",
            "sessions None false",
            "points Some(\"web\")",
            "invite None",
            "throttle office 5000000",
            "clear Some(\"office\")",
            "clear None",
            "warm Some(\"/a\") None",
            "warming a-1 60s",
            "cancel warming a-1"
        ]
    );
}

#[tokio::test]
async fn problems_become_statuses_and_never_bare_text() {
    let site = site();
    let s = site.socket.as_path();
    for (method, path, body, status, code) in [
        ("GET", "/v1/status", "", 503, "starting"),
        ("GET", "/v1/jobs/none", "", 404, "not_found"),
        ("GET", "/v1/jobs/..%2f..%2fetc", "", 400, "invalid"),
        ("GET", "/v1/jobs/WEB", "", 400, "invalid"),
        ("GET", "/v1/jobs", "", 500, "internal"),
        ("POST", "/v1/jobs", "{", 400, "invalid"),
        ("POST", "/v1/jobs", r#"{"name":"web","target":"dr","sprice":1}"#, 400, "invalid"),
        ("POST", "/v1/peers/join", r#"{"code":"x"}"#, 403, "not_allowed"),
        ("DELETE", "/v1/hosts/local", "", 409, "conflict"),
        ("GET", "/v1/sessions?actve=true", "", 400, "invalid"),
        ("POST", "/v1/doctor/disks", r#"{"disks":["a"]}"#, 400, "invalid"),
        ("POST", "/v1/doctor/disks", r#"{"disks":[]}"#, 400, "invalid"),
        ("GET", "/v1/replicas/one?replica=../x", "", 400, "invalid"),
        ("GET", "/v1/restore-points/one?point=web", "", 400, "invalid"),
        ("GET", "/v1/restore-points/export?point=web@latest&disk=7", "", 404, "not_found"),
        // A connection that was not upgraded to it.
        ("GET", "/v1/restore-points/nbd?point=web@latest", "", 400, "invalid"),
        ("GET", "/v1/nothing", "", 404, "not_found"),
        ("PUT", "/v1/jobs", "", 405, "invalid"),
    ] {
        let (got, answer) = call(s, method, path, body).await;
        let error = &answer["error"];
        assert_eq!((got, &error["code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert!(
            ["what", "why", "next_step"].iter().all(|f| error[f].as_str().is_some_and(|t| !t.is_empty())),
            "{answer}"
        );
        assert_eq!(answer["schema"], 1);
    }
    let long = "x".repeat(BODY_BYTES_MAX + 1);
    assert_eq!(client::raw(s, "POST", "/v1/jobs", long.as_bytes()).await.0, 400);
}

#[tokio::test]
async fn an_export_is_a_stream_with_an_end() {
    let site = site();
    let (status, body) =
        client::raw(&site.socket, "GET", "/v1/restore-points/export?point=web@latest", b"").await;
    assert_eq!(status, 200);
    // Chunked: the records are in there, the end record last.
    let whole = body.windows(16).any(|w| w == b"\0\0\0\0\0\0\0\0\0\0\0\x04data");
    assert!(whole, "{body:?}");
    assert!(body.windows(12).any(|w| w == b"\0\0\0\0\0\0\0\x04\0\0\0\0"), "{body:?}");
}

#[tokio::test]
async fn shutdown_ends_long_polls_and_removes_the_socket() {
    let site = site();
    let socket = site.socket.clone();
    let tracker = tokio_util::task::TaskTracker::new();
    let poll =
        tracker.spawn(async move { call(&socket, "GET", "/v1/sessions/abc?wait_ms=999999", "").await });
    while site.fake.taken() != ["wait abc 60000"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.shutdown.cancel();
    let (status, _) =
        tokio::time::timeout(Duration::from_secs(10), poll).await.expect("in time").expect("answer");
    assert_eq!(status, 404);
    tokio::time::timeout(Duration::from_secs(10), site.served)
        .await
        .expect("in time")
        .expect("task")
        .expect("served");
    assert!(!site.socket.exists());
}

#[test]
fn every_route_is_documented_and_every_document_is_a_route() {
    let document = serde_json::to_value(openapi()).expect("json");
    let documented: BTreeSet<String> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .expect("item")
                .keys()
                .map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let served: BTreeSet<String> =
        routes::table().iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(documented, served);

    // Every type that a route names is in the document.
    let mut wanted = BTreeSet::new();
    references(&document, &mut wanted);
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for name in &wanted {
        assert!(schemas.contains_key(name), "{name} is referred to and missing");
    }
    for name in
        ["Session", "SessionBytes", "StageLoad", "Job", "RestorePoint", "VerifyReport", "ErrorBody", "Status"]
    {
        assert!(schemas.contains_key(name), "{name}");
    }
}

fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                into.insert(name.rsplit('/').next().unwrap_or_default().to_owned());
            }
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}
