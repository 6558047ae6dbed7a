//! `doctor`: where vbrd answers, where it does not, at another site; and the bundle, which holds no secret.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::fake::{Answer, Fake, Request, Run, error, ok};
use crate::samples;

fn report(state: &str) -> Answer {
    ok(format!(
        r#"{{"schema":1,"checks":[{{"name":"congestion","state":"ok","found":"vbrd may use BBR","next_step":""}},
        {{"name":"disk /srv/vm/web.img (job web)","state":"{state}","found":"vbrd may not read it","next_step":"sudo vbrctl setup --disks /srv/vm/web.img"}}]}}"#
    ))
}

fn checks(run: &Run) -> Vec<(String, String)> {
    let report = run.json();
    assert_eq!(report["schema"], 1);
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .map(|check| {
            let text = |field: &str| check[field].as_str().unwrap().to_owned();
            assert!(["ok", "skipped", "warning", "critical"].contains(&text("state").as_str()), "{check}");
            assert!(!text("found").is_empty() && check["next_step"].is_string(), "{check}");
            (text("name"), text("state"))
        })
        .collect()
}

#[test]
fn vbrd_and_machine_together() {
    let fake = Fake::start(|request: &Request| match request.line.as_str() {
        "GET /v1/doctor" => report("critical"),
        "GET /v1/status" => ok(samples::status()),
        _ => error(404, "not_found"),
    });
    let run = fake.run(&["doctor", "-o", "json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let found = checks(&run);
    let of = |name: &str| found.iter().find(|(found, _)| found == name).map(|(_, state)| state.as_str());
    assert_eq!(of("congestion"), Some("ok"));
    assert_eq!(of("disk /srv/vm/web.img (job web)"), Some("critical"));
    for name in ["socket", "group", "configuration", "clock", "firewall", "versions"] {
        assert!(of(name).is_some(), "{name} was not looked at: {found:?}");
    }
    let table = fake.run(&["doctor"]);
    assert!(table.out.contains("disk /srv/vm/web.img (job web): sudo vbrctl setup --disks"), "{table:?}");
    assert!(!table.out.contains("vbrd may use BBR"), "{table:?}");
    assert!(fake.run(&["doctor", "--all"]).out.contains("vbrd may use BBR"));
}

#[test]
fn warnings_are_no_failure_and_another_site_looks_for_itself() {
    let fake = Fake::start(|request: &Request| match (request.line.as_str(), request.site.as_deref()) {
        ("GET /v1/doctor", Some("b1")) => report("warning"),
        ("GET /v1/doctor", Some("b2")) => error(403, "not_allowed"),
        _ => error(500, "unexpected"),
    });
    let run = fake.run(&["--site", "b1", "doctor", "-o", "json"]);
    assert_eq!(run.code, 0, "{run:?}");
    // Nothing of this machine.
    assert_eq!(checks(&run).len(), 2);
    let run = fake.run(&["--site", "b2", "doctor", "-o", "json"]);
    assert_eq!(checks(&run), [("vbrd".to_owned(), "warning".to_owned())]);
}

#[test]
fn a_vbrd_that_is_away_is_said_and_the_rest_is_looked_at() {
    let fake = Fake::start(|_: &Request| Answer::Die);
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    std::fs::write(fake.path("vbrd.toml"), format!("[wire]\nlisten = [\"/ip4/127.0.0.1/tcp/{port}\"]\n"))
        .unwrap();
    std::fs::remove_file(fake.socket()).unwrap();
    let run = fake.run(&["doctor", "--config", "vbrd.toml", "-o", "json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let found = checks(&run);
    assert!(found.contains(&("vbrd".into(), "critical".into())), "{found:?}");
    assert!(found.contains(&("socket".into(), "critical".into())), "{found:?}");
    assert!(found.contains(&(format!("port {port}"), "critical".into())), "{found:?}");
    std::fs::write(fake.path("bad.toml"), "[wire]\nlisten = 5\n").unwrap();
    let run = fake.run(&["doctor", "--config", "bad.toml", "-o", "json"]);
    let found = checks(&run);
    let configuration = found.iter().find(|(name, _)| name == "configuration").unwrap();
    assert!(["critical", "skipped"].contains(&configuration.1.as_str()), "{found:?}");
}

/// What must never be in a bundle, and what may be only with --plain-names.
const SECRETS: [&str; 7] = [
    "hunter2",
    "T0PSECRETPATH",
    "s3cr3tuser",
    "querytoken",
    "aebagbaeaqcabaeaya7qaaaaaaaa7gqd",
    "MIGHAgEAMBMG",
    "p1n-4711",
];
const NAMES: [&str; 7] =
    ["acme-web", "acme-hq", "/srv/acme", "192.0.2.77", "hooks.acme.example", "kunde müller", "198.51.100.9"];

fn planted(request: &Request) -> Answer {
    let job = samples::job("acme-web").replace("/srv/vm/web.img", "/srv/acme/kunde müller.img");
    match request.line.as_str() {
        "GET /v1/doctor" => report("warning"),
        "GET /v1/status" => ok(samples::status().replace("hq", "acme-hq").replace("192.0.2.7", "192.0.2.77")),
        "GET /v1/peers" => {
            ok(samples::list(&[samples::peer("acme-hq", true).replace("192.0.2.7", "192.0.2.77")]))
        }
        "GET /v1/jobs" => ok(samples::list(&[job])),
        "GET /v1/notify" => ok(
            r#"{"schema":1,"items":[{"name":"ops","webhook":"https://s3cr3tuser:hunter2@hooks.acme.example/T0PSECRETPATH?k=querytoken","command":["/bin/tell","p1n-4711"],"sent":3}]}"#,
        ),
        "GET /v1/config" => ok(
            r#"{"schema":1,"file":null,"toml":"[site]\nname = \"acme-hq\"\n[notify.ops]\nwebhook = \"https://s3cr3tuser:hunter2@hooks.acme.example/T0PSECRETPATH?k=querytoken\"\ncommand = [\"/bin/tell\", \"p1n-4711\"]\n"}"#,
        ),
        "GET /v1/metrics" => ok("vbr_job_lag_seconds{job=\"acme-web\"} 17\n"),
        line if line.starts_with("GET /v1/jobs/acme-web/log") => ok(
            r#"{"schema":1,"items":[{"seq":1,"job":"acme-web","text":"sent to acme-hq at 192.0.2.77: /srv/acme/kunde müller.img"}]}"#,
        ),
        _ => error(404, "not_found"),
    }
}

/// A journal that says too much.
fn with_journal(fake: &Fake, words: &[&str]) -> Run {
    let journal = fake.path("journalctl");
    std::fs::write(
        &journal,
        "#!/bin/sh\ncat <<'END'\n2026-11-22T19:00:42+0000 here vbrd[7]: job acme-web: peer acme-hq at 198.51.100.9:7300, code aebagbaeaqcabaeaya7qaaaaaaaa7gqd\n\
         password: hunter2\n-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\nreading /srv/acme/kunde müller.img\nEND\n",
    )
    .unwrap();
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = fake.command(words);
    Run::of(command.env("PATH", format!("{}:{path}", fake.dir.path().display())).output().unwrap())
}

/// All files of a bundle in one text.
fn unpacked(dir: &Path, bundle: &str) -> String {
    let out = dir.join(format!("{bundle}.d"));
    std::fs::create_dir(&out).unwrap();
    let status =
        Command::new("tar").args(["-xf"]).arg(dir.join(bundle)).arg("-C").arg(&out).status().unwrap();
    assert!(status.success());
    let grep = Command::new("grep").args(["-ra", ""]).arg(&out).output().unwrap();
    String::from_utf8_lossy(&grep.stdout).into_owned()
}

#[test]
fn a_bundle_holds_no_planted_secret_and_no_name() {
    let fake = Fake::start(planted);
    let run = with_journal(&fake, &["doctor", "--bundle", "a.tar.gz"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.contains("api/status.json") && run.out.contains("log.txt"), "{run:?}");
    let mode = std::fs::metadata(fake.path("a.tar.gz")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = unpacked(fake.dir.path(), "a.tar.gz");
    for word in SECRETS.iter().chain(&NAMES) {
        let place = text.lines().find(|line| line.contains(word));
        assert!(place.is_none(), "{word}: {place:?}");
    }
    // The same thing has the same name everywhere, and what helps is there.
    let token =
        text.split("vbr_job_lag_seconds{job=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert!(token.starts_with("job-"), "{token}");
    assert!(text.contains(&format!("vbrd[7]: job {token}: peer site-")), "{text}");
    assert!(text.contains("== /etc/os-release") && text.contains("\"state\": \"running\""), "{text}");

    // Nothing is overwritten, and only forms that are known are written.
    let again = with_journal(&fake, &["doctor", "--bundle", "a.tar.gz"]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(with_journal(&fake, &["doctor", "--bundle", "a.zip"]).code, 2);
    assert!(!fake.path("a.zip").exists());
}

#[test]
fn plain_names_stay_and_secrets_do_not() {
    let fake = Fake::start(planted);
    let run = with_journal(&fake, &["doctor", "--bundle", "b.tar.zst", "--plain-names", "-o", "json"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.json()["plain_names"], true);
    let plain = Command::new("zstd").args(["-dqc"]).arg(fake.path("b.tar.zst")).output().unwrap();
    std::fs::write(fake.path("b.tar"), plain.stdout).unwrap();
    let text = unpacked(fake.dir.path(), "b.tar");
    for secret in SECRETS {
        let place = text.lines().find(|line| line.contains(secret));
        assert!(place.is_none(), "{secret}: {place:?}");
    }
    for name in NAMES {
        assert!(text.contains(name), "{name} is missing");
    }
}
