//! Orders for other sites, all sites at once, and what stays at a site.

use crate::fake::{Answer, Fake, Request, error, ok};
use crate::samples;

/// A site with two peers that it manages, one of them away, and one that it does not.
fn headquarters(request: &Request) -> Answer {
    let granted = |name: &str, grants: &str| {
        samples::peer(name, true).replacen('{', &format!("{{\"granted\":[{grants}],"), 1)
    };
    match (request.line.as_str(), request.site.as_deref()) {
        ("GET /v1/status", None | Some("b1")) => ok(samples::status()),
        ("GET /v1/status", Some("b2")) => error(503, "site_unreachable"),
        ("GET /v1/peers", None) => ok(samples::list(&[
            granted("b2", "\"manage\""),
            granted("b1", "\"replicate\",\"manage\""),
            granted("b3", "\"replicate\""),
        ])),
        (_, Some("b3")) => error(403, "not_allowed"),
        ("GET /v1/jobs", Some("b1")) => ok(samples::list(&[samples::job("web")])),
        ("POST /v1/state/export", None) => Answer::Stream(vec![b"sealed".to_vec()]),
        _ => error(500, "unexpected"),
    }
}

#[test]
fn an_order_names_its_site() {
    let fake = Fake::start(headquarters);
    assert_eq!(fake.run(&["--site", "b1", "job", "list"]).code, 0);
    assert_eq!(fake.run(&["job", "list", "--site", "b3"]).code, 4);
    let seen = fake.seen.lock().unwrap();
    assert_eq!(
        seen.iter().map(|request| request.site.clone().unwrap_or_default()).collect::<Vec<_>>(),
        ["b1", "b3"]
    );
}

#[test]
fn all_sites_at_once() {
    let fake = Fake::start(headquarters);
    let run = fake.run(&["status", "--all-sites", "-o", "json"]);
    assert_eq!(run.code, 3, "{run:?}");
    let all = run.json();
    let sites = all["items"].as_array().unwrap();
    let names: Vec<_> =
        sites.iter().map(|site| (site["site"].as_str().unwrap(), site["reachable"] == true)).collect();
    assert_eq!(all["schema"], 1);
    assert_eq!(names[1..], [("b1", true), ("b2", false)]);
    assert!(sites[0]["local"] == true && sites[2]["error"]["code"] == "site_unreachable");
    let lines = fake.run(&["status", "--all-sites", "-o", "jsonl"]);
    assert_eq!((lines.code, lines.out.lines().count()), (3, 3), "{lines:?}");
    let table = fake.run(&["status", "--all-sites"]);
    assert!(table.out.contains("unreachable") && table.out.contains("(here)"), "{table:?}");
    assert_eq!(fake.run(&["status", "--all-sites", "--site", "b1"]).code, 2);
    assert_eq!(fake.run(&["status", "--all-sites", "--watch"]).code, 2);
}

#[test]
fn a_state_stays_at_its_site_and_its_passphrase_off_the_command_line() {
    let fake = Fake::start(headquarters);
    std::fs::write(fake.path("words"), "correct horse\n").unwrap();
    assert_eq!(fake.run(&["--site", "b1", "state", "export", "out", "--passphrase-file", "words"]).code, 4);
    assert_eq!(fake.run(&["state", "export", "out"]).code, 2);
    assert_eq!(fake.run(&["state", "export", "out", "--passphrase", "x"]).code, 2);
    assert!(fake.seen.lock().unwrap().is_empty());
    assert_eq!(fake.run(&["state", "export", "out", "--passphrase-file", "words"]).code, 0);
    assert_eq!(std::fs::read(fake.path("out")).unwrap(), b"sealed");
    assert_eq!(fake.run(&["state", "export", "out", "--passphrase-file", "words"]).code, 1);
    assert_eq!(fake.run(&["peer", "grant", "b1"]).code, 2);
    assert_eq!(fake.run(&["peer", "grant", "b1", "--manage", "--no-manage"]).code, 2);
}
