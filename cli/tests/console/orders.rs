//! Orders and lists: streams, forms, error mapping, idempotence, confirmation.

use crate::fake::{Answer, Fake, Request, error, ok};
use crate::samples;

/// Most of the API, in good health.
pub fn healthy(request: &Request) -> Answer {
    let list = |item: String| ok(samples::list(&[item]));
    match request.line.as_str() {
        "GET /v1/status" => ok(samples::status()),
        "GET /v1/peers" => ok(samples::list(&[samples::peer("dr", true), samples::peer("hq", false)])),
        "GET /v1/peers/dr" | "POST /v1/peers/dr/grant" | "POST /v1/peers/join" => ok(samples::peer("dr", true)),
        "POST /v1/peers/invite" => ok(r#"{"schema":1,"code":"vbr1-abc","expires_at":"2099-01-01T00:00:00Z"}"#),
        "GET /v1/jobs" => list(samples::job("web")),
        "GET /v1/jobs/web" | "POST /v1/jobs/web/disable" => ok(samples::job("web")),
        "POST /v1/jobs" if request.body.contains("\"new\"") => Answer::Json(201, samples::job("new")),
        "POST /v1/jobs" | "PATCH /v1/jobs/web" => ok(samples::job("web")),
        "GET /v1/jobs/web/history" | "GET /v1/sessions" => list(samples::session("warning", 10_737_418_240)),
        "GET /v1/jobs/web/plan" => ok(
            r#"{"schema":1,"job":"web","mode":"incremental","virtual_bytes":10737418240,"read_bytes":10737418240,"changed_bytes":268435456,"zero_bytes":0,"known_bytes":167772160,"unseen_bytes":100663296,"send_bytes":41943040,"duration_ms":42000,"retires":["20261101t000000z-0001"]}"#,
        ),
        "GET /v1/jobs/big/plan" => ok(
            r#"{"schema":1,"job":"big","mode":"incremental","virtual_bytes":1099511627776,"read_bytes":1099511627776,"changed_bytes":536870912000,"zero_bytes":0,"known_bytes":107374182400,"known_error_bytes":2147483648,"known_from":"estimated","unseen_bytes":429496729600,"send_bytes":214748364800,"duration_ms":null,"retires":[]}"#,
        ),
        "DELETE /v1/jobs/web" => Answer::Json(204, String::new()),
        "GET /v1/hosts" => list(r#"{"name":"local","driver":"disk","directories":["/srv/vm"]}"#.into()),
        "POST /v1/hosts" => Answer::Json(201, r#"{"schema":1,"name":"lab","driver":"disk","directories":[]}"#.into()),
        "GET /v1/vms" | "GET /v1/vms?host=local" => list(
            r#"{"host":"local","name":"shop","disks":[{"path":"/srv/vm/a.img","format":"raw"},{"path":"/srv/vm/swap.img","format":"raw"}],"virtual_bytes":10737418240,"formats":["raw"],"jobs":["web"]}"#.into(),
        ),
        "GET /v1/repositories" => list(repository()),
        "GET /v1/repositories/web" => ok(repository()),
        "POST /v1/repositories/web/verify" => ok(repository_report("differs")),
        "POST /v1/repositories/web/rebuild" => ok(repository_report("rebuilt")),
        "GET /v1/replicas" => list(samples::replica()),
        "GET /v1/replicas/one?replica=branch%2Fweb" => ok(samples::replica()),
        "POST /v1/replicas/verify?replica=web" => ok(samples::list(&[samples::report(true), samples::report(false)])),
        "GET /v1/restore-points?replica=web" | "GET /v1/restore-points?replica=branch%2Fweb" => {
            list(samples::point(10_737_418_240))
        }
        "GET /v1/restore-points/one?point=web%40latest" => ok(samples::point(10_737_418_240)),
        "POST /v1/restore-points/verify?point=web%40latest" => ok(samples::report(true)),
        "POST /v1/restore-points/pin?point=web%40latest" => ok(samples::point(10_737_418_240)
            .replace("\"state\":\"sealed\"", "\"state\":\"pinned\",\"pinned_until\":\"2027-01-31T00:00:00Z\"")),
        "POST /v1/restore-points/unpin?point=web%40latest" => ok(samples::point(10_737_418_240)),
        "DELETE /v1/restore-points/one?point=web%40latest" => error(409, "conflict"),
        "DELETE /v1/restore-points/one?point=web%40latest&force=true" => {
            ok(r#"{"schema":1,"removed":["20261122t190042z-3fa2"],"overridden":["it is the newest"]}"#)
        }
        "POST /v1/restore-points/verify?point=bad%40latest" => ok(samples::report(false)),
        "GET /v1/cache" => ok(
            r#"{"schema":1,"size_bytes":10737418240,"used_bytes":5368709120,"packs":80,"chunks":81920,"lookups":1000,"hits":400,"reads":400,"bad_records":0,"evicted_packs":2,"footer_hits":90,"footer_misses":10,"disk_locations":163840}"#,
        ),
        "GET /v1/cache/warm" => list(warming("running")),
        "POST /v1/cache/warm" => ok(warming("waiting")),
        "POST /v1/cache/warm/a-1/cancel" => ok(warming("cancelled")),
        "GET /v1/cache/warm/a-1?wait_ms=2000" => ok(warming("succeeded")),
        "GET /v1/config" => ok(r#"{"schema":1,"file":"/etc/vbr/vbrd.toml","toml":"[site]\nname = \"branch\"\n"}"#),
        "GET /v1/jobs/forbidden" => error(403, "not_allowed"),
        "GET /v1/jobs/conflict" => error(409, "conflict"),
        "GET /v1/jobs/invalid" => error(400, "invalid"),
        "GET /v1/jobs/broken" => Answer::Json(500, "oops".into()),
        "GET /v1/jobs/busy" => error(503, "draining"),
        "GET /v1/jobs/silent" => Answer::HangUp,
        "GET /v1/jobs/odd" => ok("no JSON"),
        "GET /v1/tasks" => ok(samples::list(&[task("scrub", "idle"), task("retention", "stuck")])),
        "GET /v1/tasks/scrub" | "POST /v1/tasks/scrub/run" => ok(task("scrub", "idle")),
        "GET /v1/jobs/web/log?lines=100&after=0" => ok(samples::list(&[log_entry(1, "due"), log_entry(2, "failed")])),
        "GET /v1/jobs/web/log?lines=5&after=0&session=s1" => ok(samples::list(&[log_entry(2, "failed")])),
        "GET /v1/notify" => list(hook()),
        "POST /v1/notify/ops/test" => ok(hook()),
        "GET /v1/throttle" => ok(throttles()),
        "POST /v1/throttle" if request.body.contains("\"office\"") => Answer::Json(201, rule("office", true)),
        "POST /v1/throttle" => ok(rule("night", false)),
        "DELETE /v1/throttle/office" => ok(r#"{"schema":1,"removed":["office"]}"#),
        "DELETE /v1/throttle" => ok(r#"{"schema":1,"removed":["office","night"]}"#),
        _ => error(404, "not_found"),
    }
}

fn task(name: &str, state: &str) -> String {
    format!(
        r#"{{"schema":1,"name":"{name}","what":"it works","role":"site","state":"{state}","last_run_at":"2026-11-22T19:00:00Z","duration_ms":61000,"next_run_at":null,"runs":3,"failures":0,"last_error":"once upon a time","last_error_at":"2026-11-20T19:00:00Z","progress":{{"done":1,"total":4}},"counters":{{"cache_records":7}},"finding":{{"level":"warning","what":"2 damaged records","next_step":"look"}},"runnable":true}}"#
    )
}

fn log_entry(seq: u64, event: &str) -> String {
    let level = if event == "failed" { "error" } else { "info" };
    format!(
        r#"{{"schema":1,"seq":{seq},"at":"2026-11-22T19:00:00Z","job":"web","session":"s1","level":"{level}","event":"{event}","text":"the text of {event}"}}"#
    )
}

fn hook() -> String {
    r#"{"schema":1,"name":"ops","on":["failure","stall"],"jobs":[],"webhook":"http://ops:80/x","command":["/bin/tell","-v"],"sent":4,"failed":1,"dropped":0,"queued":0,"last_sent_at":null,"last_error":"it answered 500"}"#.into()
}

fn warming(state: &str) -> String {
    format!(
        r#"{{"schema":1,"id":"a-1","subject":"/srv/seed/web.img","asked_by":null,"state":"{state}","total_bytes":10737418240,"read_bytes":5368709120,"chunks":81920,"known_chunks":20480,"bad_chunks":0,"chunks_by_block":81920,"ordered_at":"2026-11-22T10:00:00Z","ended_at":null,"error":null}}"#
    )
}

fn rule(name: &str, in_force: bool) -> String {
    format!(
        r#"{{"schema":1,"name":"{name}","rate_bps":5000000,"network":"10.1.0.0/16","days":"Mon..Fri","hours":"08:00-18:00","in_force":{in_force},"changes_at":"2099-01-01T00:00:00Z"}}"#
    )
}

fn throttles() -> String {
    format!(
        r#"{{"schema":1,"items":[{},{}],"peers":[{{"peer":"dr","limit_bps":5000000,"rule":"office"}},{{"peer":"hq","limit_bps":null,"rule":null}}]}}"#,
        rule("office", true),
        rule("night", false)
    )
}

fn repository() -> String {
    r#"{"schema":1,"job":"web","peer":"dr","disks":[{"path":"/srv/vm/web.img","virtual_bytes":10737418240,"root":"0123456789abcdef0123456789abcdef","pages":160}],"restore_point":"20261122t190042z-3fa2","state":"ok"}"#.into()
}

fn repository_report(state: &str) -> String {
    format!(
        r#"{{"schema":1,"job":"web","state":"{state}","pages_checked":160,"pages_bad":0,"received_bytes":20480,"restore_point":"20261122t190042z-3fa2"}}"#
    )
}

#[test]
fn errors_become_exit_statuses() {
    let fake = Fake::start(healthy);
    for (name, code) in [
        ("missing", 5),
        ("forbidden", 4),
        ("conflict", 1),
        ("invalid", 2),
        ("broken", 1),
        ("busy", 1),
        ("silent", 1),
        ("odd", 1),
    ] {
        let run = fake.run(&["job", "show", name]);
        assert_eq!(run.code, code, "{name}: {run:?}");
        assert!(run.out.is_empty(), "{name}: {run:?}");
        assert_eq!(run.err.lines().count(), 3, "{name}: {run:?}");
        let run = fake.run(&["job", "show", name, "-o", "json"]);
        assert_eq!(run.code, code, "{name}: {run:?}");
        let error: serde_json::Value = serde_json::from_str(&run.err).unwrap();
        assert_eq!(error["schema"], 1);
        for field in ["code", "what", "why", "next_step"] {
            assert!(error["error"][field].is_string(), "{name}: {error}");
        }
        assert!(error["error"]["retry"].is_boolean());
    }
    let run = fake.run(&["job", "show", "missing"]);
    assert_eq!(run.err, "error: It failed\n  why:  the reason\n  next: the step\n");
}

#[test]
fn usage_errors_are_two_in_both_forms() {
    let fake = Fake::start(healthy);
    for words in [
        &["job", "create", "web", "--disk", "/a,size=3", "--target", "dr"][..],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--every", "often"],
        &["job", "create", "web", "--disk", "/a", "--vm", "local/x", "--target", "dr"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--rate", "8MB"],
        &["throttle", "set", "office"],
        &["throttle", "set", "office", "--rate", "0Mbit"],
        &["throttle", "set", "Office", "--rate", "8Mbit"],
        &["throttle", "set", "office", "--rate", "8Mbit", "--peer", "dr", "--network", "10.0.0.0/8"],
        &["throttle", "clear"],
        &["throttle", "clear", "office", "--all"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--retry", "often"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--priority", "urgent"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--seed", "a/b"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--seed", "/a,format=vmdk"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--map", "hq/web"],
        &["cache", "warm", "/a,format=vmdk"],
        &["cache", "warm", "Web"],
        &["cache", "warm", "web@latest", "--peer", "dr"],
        &["cache", "warm", "--wait"],
        &["cache", "warm", "web", "--cancel", "a-1"],
        &["job", "edit", "web"],
        &["job", "edit", "web", "--every", "1h", "--manual"],
        &["job", "edit", "web", "--keep", "0"],
        &["job", "run", "web", "--timeout", "5"],
        &["job", "run", "web", "--timeout", "5m"],
        &["job", "create", "web", "--disk", "/a", "--target", "dr", "--keep-daily", "0"],
        &["restore-point", "show", "web"],
        &["restore-point", "pin", "web@latest", "--for", "9d", "--until", "2027-01-31"],
        &["restore-point", "pin", "web@latest", "--until", "soon"],
        &["peer", "grant", "dr"],
        &["job", "log", "web", "--lines", "0"],
        &["job", "log", "web", "--lines", "5000"],
        &["peer", "grant", "dr", "--quota", "0"],
        &["peer", "grant", "dr", "--max-points", "few"],
        &["nonsense"],
    ] {
        assert_eq!(fake.run(words).code, 2, "{words:?}");
        let run = fake.run(&[words, &["-o", "json"]].concat());
        assert_eq!(run.code, 2);
        let error: serde_json::Value = serde_json::from_str(&run.err).unwrap();
        assert_eq!(error["error"]["code"], "usage", "{words:?}");
    }
    assert!(fake.seen.lock().unwrap().is_empty());
}

#[test]
fn warming_is_ordered_watched_and_ended() {
    let fake = Fake::start(healthy);
    let ordered = fake.run(&["cache", "warm", "/srv/seed/web.img,format=qcow2", "--peer", "dr"]);
    assert!(ordered.code == 0 && ordered.out.contains("a-1"), "{ordered:?}");
    let waited = fake.run(&["cache", "warm", "branch/web@latest", "--wait", "-o", "json"]);
    assert!(waited.code == 0 && waited.out.contains("\"state\": \"succeeded\""), "{waited:?}");
    let listed = fake.run(&["cache", "warm"]);
    assert!(listed.out.contains("/srv/seed/web.img") && listed.out.contains("50"), "{listed:?}");
    assert!(fake.run(&["cache", "warm", "--cancel", "a-1"]).code == 0);
    let seen = fake.seen.lock().unwrap();
    let bodies: Vec<&str> =
        seen.iter().map(|request| request.body.as_str()).filter(|body| body.len() > 2).collect();
    assert_eq!(
        bodies,
        [
            r#"{"path":"/srv/seed/web.img","format":"qcow2","peer":"dr"}"#,
            r#"{"replica":"branch/web@latest"}"#
        ]
    );
}

#[test]
fn a_plan_says_whether_it_was_estimated() {
    let fake = Fake::start(healthy);
    let exact = fake.run(&["job", "plan", "web"]);
    assert!(
        exact.out.contains("160.0 MiB, need not be sent") && !exact.out.contains("estimated"),
        "{exact:?}"
    );
    let run = fake.run(&["job", "plan", "big"]);
    assert!(run.out.contains("estimated from a sample, give or take 2.0 GiB"), "{run:?}");
}

#[test]
fn no_vbrd_says_how_to_start_it() {
    let fake = Fake::start(healthy);
    std::fs::remove_file(fake.socket()).unwrap();
    let run = fake.run(&["status"]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.contains("there is no such socket") && run.err.contains("systemctl start vbrd"),
        "{run:?}"
    );
}

#[test]
fn the_socket_comes_from_the_environment_too() {
    let fake = Fake::start(healthy);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vbrctl"));
    command.env("VBR_SOCKET", fake.socket()).args(["job", "list"]);
    assert!(command.output().unwrap().status.success());
}

#[test]
fn invite_prints_the_code_alone() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["peer", "invite", "--for", "30m"]);
    assert_eq!((run.code, run.out.as_str()), (0, "vbr1-abc\n"));
    assert!(run.err.contains("peer join CODE") && !run.err.contains("vbr1-abc"), "{run:?}");
    assert!(fake.seen.lock().unwrap()[0].body.contains("1800000"));
    let run = fake.run(&["peer", "invite", "-o", "json"]);
    assert_eq!((run.json()["code"].as_str(), run.json()["schema"].as_u64()), (Some("vbr1-abc"), Some(1)));
    assert!(run.err.is_empty());
}

#[test]
fn create_is_idempotent_and_sends_absolute_paths() {
    let fake = Fake::start(healthy);
    let run = fake.run(&[
        "job",
        "create",
        "new",
        "--disk",
        "a,,b.img,format=qcow2",
        "--target",
        "dr",
        "--keep",
        "14",
    ]);
    assert_eq!((run.code, run.out.as_str()), (0, "job new created\n"), "{run:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.seen.lock().unwrap()[0].body).unwrap();
    let path = std::fs::canonicalize(fake.dir.path()).unwrap().join("a,b.img");
    assert_eq!(body["disks"][0]["path"], path.to_str().unwrap());
    assert_eq!(body["disks"][0]["format"], "qcow2");
    assert_eq!((&body["keep"], &body["enabled"]), (&14.into(), &true.into()));
    let run = fake.run(&["job", "create", "web", "--disk", "/srv/vm/web.img", "--target", "dr"]);
    assert_eq!((run.code, run.out.as_str()), (0, "job web unchanged\n"));
}

#[test]
fn an_edit_sends_what_is_named() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["job", "edit", "web", "--priority", "low", "--window", "any", "--drop-disks"]);
    assert_eq!((run.code, run.out.as_str()), (0, "job web unchanged\n"), "{run:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.seen.lock().unwrap()[1].body).unwrap();
    let change = serde_json::json!({"priority": "low", "schedule": {"window": null}});
    assert_eq!((&body["change"], &body["drop_disks"]), (&change, &true.into()));
    assert_eq!(fake.run(&["job", "edit", "missing", "--manual"]).code, 5);
}

#[test]
fn an_exported_definition_is_accepted() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["job", "export", "web"]);
    std::fs::write(fake.path("web.toml"), &run.out).unwrap();
    let run = fake.run(&["job", "create", "--from", "web.toml"]);
    assert_eq!((run.code, run.out.as_str()), (0, "job web unchanged\n"), "{run:?}");
    let seen = fake.seen.lock().unwrap();
    let body: serde_json::Value = serde_json::from_str(&seen[1].body).unwrap();
    assert_eq!(body["disks"][0]["path"], "/srv/vm/web.img");
    assert_eq!((&body["target"], &body["keep"]), (&"dr".into(), &14.into()));
}

#[test]
fn disks_that_are_left_out_go_with_the_vm() {
    let fake = Fake::start(healthy);
    let vm = ["job", "create", "new", "--vm", "local/shop", "--target", "dr", "--exclude"];
    let run = fake.run(&[&vm[..], &["swap.img"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.seen.lock().unwrap()[0].body).unwrap();
    assert_eq!((&body["vm"], &body["exclude"]), (&"local/shop".into(), &serde_json::json!(["swap.img"])));
    let edited = |words: &[&str]| {
        let before = fake.seen.lock().unwrap().len();
        let run = fake.run(&[&["job", "edit", "web"], words].concat());
        assert_eq!(run.code, 0, "{run:?}");
        let body = fake.seen.lock().unwrap()[before + 1].body.clone();
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["change"].clone()
    };
    assert_eq!(edited(&["--exclude", "a", "--exclude", "b"]), serde_json::json!({"exclude": ["a", "b"]}));
    assert_eq!(edited(&["--exclude", "none"]), serde_json::json!({"exclude": null}));
    assert_eq!(fake.run(&["job", "create", "x", "--disk", "/a", "--exclude", "b", "--target", "dr"]).code, 2);
}

#[test]
fn hosts_behind_servers_and_libvirts_go_as_they_are_written() {
    let fake = Fake::start(healthy);
    let order =
        ["host", "add", "lab", "--driver", "nbd", "--uri", "web=nbds://gate/web", "--uri", "nbds://store"];
    let run = fake.run(&[&order[..], &["--tls-dir", "/etc/vbr/tls"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.seen.lock().unwrap()[0].body).unwrap();
    assert_eq!(body["uris"], serde_json::json!(["web=nbds://gate/web", "nbds://store"]));
    assert_eq!((&body["driver"], &body["tls_dir"]), (&"nbd".into(), &"/etc/vbr/tls".into()));
    // What is not said is not sent: an older vbrd takes the others as ever.
    let run = fake.run(&["host", "add", "lab", "--directory", "/srv/vm"]);
    assert_eq!(run.code, 0, "{run:?}");
    let body = fake.seen.lock().unwrap()[1].body.clone();
    assert!(!body.contains("uris") && !body.contains("tls_dir"), "{body}");
    let disk = fake.run(&["job", "create", "new", "--disk", "nbd://gate/web", "--target", "dr"]);
    assert!(disk.code == 2 && disk.err.contains("--driver nbd"), "{disk:?}");
}

#[test]
fn a_script_is_not_asked_and_no_input_wants_yes() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["job", "remove", "web", "--no-input"]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.err.contains("--yes"), "{run:?}");
    assert!(fake.seen.lock().unwrap().is_empty());
    assert_eq!(fake.run(&["job", "remove", "web"]).code, 0);
    let run = fake.run(&["job", "remove", "web", "--yes", "--no-input"]);
    assert_eq!((run.code, run.out.as_str()), (0, "job web removed\n"));
    let run = fake.run(&["job", "remove", "web", "--yes", "-o", "json"]);
    assert_eq!((run.code, &run.json()["removed"][0]), (0, &"web".into()));
}

#[test]
fn verification_decides_the_exit_status() {
    let fake = Fake::start(healthy);
    assert_eq!(fake.run(&["restore-point", "verify", "web@latest"]).code, 0);
    let run = fake.run(&["restore-point", "verify", "bad@latest"]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("1048576") && run.err.contains("damaged"), "{run:?}");
    let run = fake.run(&["replica", "verify", "web", "-o", "json"]);
    assert_eq!((run.code, run.json()["items"].as_array().unwrap().len()), (1, 2));
    assert_eq!(fake.run(&["repository", "verify", "web"]).code, 1);
    assert_eq!(fake.run(&["repository", "rebuild", "web"]).code, 0);
}

#[test]
fn retention_and_quotas() {
    let fake = Fake::start(healthy);
    let body = |fake: &Fake| -> serde_json::Value {
        serde_json::from_str(&fake.seen.lock().unwrap().last().unwrap().body).unwrap()
    };
    let words =
        ["job", "create", "new", "--disk", "/a", "--target", "dr", "--keep-daily", "7", "--keep-yearly", "2"];
    assert_eq!(fake.run(&words).code, 0);
    let kept = serde_json::json!({"daily": 7, "weekly": 0, "monthly": 0, "yearly": 2});
    assert_eq!((&body(&fake)["keep_calendar"], body(&fake).get("keep")), (&kept, None));

    let run = fake.run(&["restore-point", "pin", "web@latest", "--until", "2027-01-31"]);
    assert_eq!(run.out, "restore point web@latest pinned until 2027-01-31 00:00:00 UTC\n", "{run:?}");
    assert_eq!(body(&fake)["until"], "2027-01-31T00:00:00Z");
    fake.run(&["restore-point", "pin", "web@latest", "--for", "90d"]);
    assert_eq!(body(&fake)["for_ms"], 7_776_000_000u64);
    let run = fake.run(&["restore-point", "unpin", "web@latest"]);
    assert_eq!((run.code, run.out.as_str()), (0, "restore point web@latest unpinned\n"));
    assert_eq!(fake.run(&["restore-point", "remove", "web@latest", "--yes"]).code, 1);
    let run = fake.run(&["restore-point", "remove", "web@latest", "--yes", "--force"]);
    assert!(run.code == 0 && run.err.contains("overridden: it is the newest"), "{run:?}");

    let run = fake.run(&["peer", "grant", "dr", "--quota", "500G", "--max-points", "default"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(body(&fake), serde_json::json!({"quota_bytes": 536_870_912_000u64, "max_points": 0}));
}

#[test]
fn forms_of_a_list() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["session", "list", "-o", "json"]);
    // Fields that this vbrctl does not know pass through.
    assert_eq!(run.json()["items"][0]["a_later_field"]["x"], 1);
    let run = fake.run(&["peer", "list", "-o", "jsonl"]);
    let lines: Vec<serde_json::Value> =
        run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["schema"] == 1));
    let narrow = fake.run(&["peer", "list"]).out;
    let wide = fake.run(&["peer", "list", "-o", "wide"]).out;
    assert!(!narrow.contains("PEER ID") && wide.contains("PEER ID"));
    assert!(!narrow.contains('\x1b'));
    let all = fake.run(&["restore-point", "list", "-o", "json"]);
    assert_eq!(all.json()["items"][0]["id"], "20261122t190042z-3fa2");
}

#[test]
fn throttling_rules_are_set_listed_and_cleared() {
    let fake = Fake::start(healthy);
    let run =
        fake.run(&["throttle", "set", "office", "--rate", "5Mbit", "--peer", "dr", "--days", "Mon..Fri"]);
    assert_eq!((run.code, run.out.as_str()), (0, "rule office set: 5.0 Mbit/s\n"), "{run:?}");
    let body: serde_json::Value = serde_json::from_str(&fake.seen.lock().unwrap()[0].body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"name": "office", "rate_bps": 5_000_000, "peer": "dr", "days": "Mon..Fri"})
    );
    let run = fake.run(&["throttle", "set", "night", "--rate", "5Mbit"]);
    assert_eq!(run.out, "rule night replaced: 5.0 Mbit/s, not in force now\n");
    let run = fake.run(&["throttle", "list"]);
    for word in ["office", "5.0 Mbit/s", "network 10.1.0.0/16", "in force", "waits", "Connected peers", "hq"]
    {
        assert!(run.out.contains(word), "{word}: {run:?}");
    }
    let run = fake.run(&["throttle", "list", "-o", "json"]);
    assert_eq!(run.json()["items"][0]["rate_bps"], 5_000_000);
    assert_eq!(run.json()["peers"][0]["limit_bps"], 5_000_000);
    assert_eq!(fake.run(&["throttle", "list", "-o", "jsonl"]).out.lines().count(), 2);
    assert_eq!(fake.run(&["throttle", "clear", "office"]).out, "rule office cleared\n");
    assert_eq!(fake.run(&["throttle", "clear", "--all", "-o", "json"]).json()["removed"][1], "night");
    assert_eq!(fake.run(&["throttle", "clear", "other"]).code, 5);
}

#[test]
fn completions_and_man_pages() {
    let fake = Fake::start(healthy);
    for shell in ["bash", "zsh", "fish"] {
        let run = fake.run(&["completion", shell]);
        assert!(run.code == 0 && run.out.contains("restore-point"), "{shell}");
    }
    assert_eq!(fake.run(&["man", fake.path("man").to_str().unwrap()]).code, 0);
    let pages = crate::fake::left_in(&fake.path("man"));
    assert!(pages.contains(&"vbrctl-job-create.1".to_string()), "{pages:?}");
}

#[test]
fn a_closed_pipe_is_no_drama() {
    use std::process::Stdio;
    let fake = Fake::start(healthy);
    let mut child =
        fake.command(&["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_configuration_is_checked_by_the_vbrd_beside() {
    use std::os::unix::fs::PermissionsExt;
    let fake = Fake::start(healthy);
    std::fs::copy(env!("CARGO_BIN_EXE_vbrctl"), fake.path("vbrctl")).unwrap();
    let script = "#!/bin/sh\n[ \"$1 $2\" = 'check-config --config' ] && grep -q good \"$3\"\n";
    std::fs::write(fake.path("vbrd"), script).unwrap();
    std::fs::set_permissions(fake.path("vbrd"), std::fs::Permissions::from_mode(0o755)).unwrap();
    for (text, code) in [("good", 0), ("bad", 1)] {
        std::fs::write(fake.path("c.toml"), text).unwrap();
        let mut command = std::process::Command::new(fake.path("vbrctl"));
        command.args(["config", "validate"]).arg(fake.path("c.toml"));
        assert_eq!(crate::fake::Run::of(command.output().unwrap()).code, code, "{text}");
    }
}

#[test]
fn workers_logs_and_hooks_are_listed_and_ordered() {
    let fake = Fake::start(healthy);
    let run = fake.run(&["task", "list"]);
    assert!(run.code == 0 && run.out.contains("2 damaged records") && run.out.contains("stuck"), "{run:?}");
    let run = fake.run(&["task", "show", "scrub"]);
    assert!(run.out.contains("cache_records 7") && run.out.contains("once upon a time"), "{run:?}");
    let run = fake.run(&["task", "list", "-o", "jsonl"]);
    assert_eq!(run.out.lines().count(), 2, "{run:?}");
    for words in [&["task", "run", "scrub"][..], &["cache", "scrub"]] {
        let run = fake.run(words);
        assert!(run.code == 0 && run.out.contains("vbrctl task show scrub"), "{run:?}");
    }
    assert_eq!(fake.run(&["task", "run", "none"]).code, 5);
    let run = fake.run(&["job", "log", "web"]);
    assert!(run.out.contains("the text of due") && run.out.contains("error"), "{run:?}");
    let run = fake.run(&["job", "log", "web", "--session", "s1", "--lines", "5", "-o", "json"]);
    assert_eq!(run.json()["items"][0]["event"], "failed", "{run:?}");
    let run = fake.run(&["job", "log", "web", "--follow", "-o", "json"]);
    assert!(run.code == 2 && run.err.contains("jsonl"), "{run:?}");
    let run = fake.run(&["notify", "list"]);
    assert!(run.out.contains("/bin/tell -v") && run.out.contains("it answered 500"), "{run:?}");
    assert_eq!(fake.run(&["notify", "test", "ops"]).code, 0);
    assert_eq!(fake.run(&["notify", "test", "none"]).code, 5);
}
