use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::Webhook;

fn section(webhook: Option<String>, command: &[&str]) -> NotifySection {
    NotifySection {
        name: "ops".into(),
        on: vec![NotifyEvent::Failure, NotifyEvent::RpoMissed],
        jobs: vec!["web".into()],
        webhook: webhook.map(|authority| Webhook {
            url: format!("http://{authority}/hook"),
            host: authority.clone(),
            authority,
            path: "/hook".into(),
            tls: false,
        }),
        command: command.iter().map(ToString::to_string).collect(),
        timeout: Duration::from_millis(800),
    }
}

struct World {
    notifier: Arc<Notifier>,
    workers: Arc<Workers>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl World {
    fn new(section: NotifySection) -> Self {
        let (workers, tasks, stop) = (Workers::new(None), TaskTracker::new(), CancellationToken::new());
        let pause = Duration::from_millis(1);
        let notifier = Notifier::start_with("branch", &[section], &workers, &tasks, &stop, pause);
        Self { notifier, workers, tasks, stop }
    }

    async fn until(&self, so: impl Fn(&NotifyHook) -> bool) -> NotifyHook {
        for _ in 0..4000 {
            let hook = self.notifier.list().remove(0);
            if so(&hook) {
                return hook;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it did not come to that within 20 s: {:?}", self.notifier.list());
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Answers each connection with the next of these, and says what it got.
async fn server(tasks: &TaskTracker, answers: &'static [&'static str]) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (seen, got) = mpsc::channel(16);
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, mut piece) = (String::new(), [0; 4096]);
            while !request.ends_with('}') {
                let read = stream.read(&mut piece).await.unwrap();
                request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
                assert!(read > 0, "{request}");
            }
            let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            seen.send(request).await.unwrap();
        }
    });
    (address, got)
}

#[tokio::test]
async fn a_webhook_is_tried_again_and_gets_who_and_what() {
    let servers = TaskTracker::new();
    let (address, mut got) = server(&servers, &["500 Oops", "200 OK"]).await;
    let world = World::new(section(Some(address), &[]));
    world.notifier.tell(NotifyEvent::Success, "success", "web", "nobody wants to hear", None);
    world.notifier.tell(NotifyEvent::Failure, "failure", "db", "of another job", None);
    world.notifier.tell(NotifyEvent::RpoMissed, "rpo-recovered", "web", "it is back", None);
    let hook = world.until(|hook| hook.sent == 1).await;
    assert_eq!((hook.failed, hook.dropped), (0, 0), "{hook:?}");
    let (first, second) = (got.recv().await.unwrap(), got.recv().await.unwrap());
    assert_eq!(first, second, "another try is the same");
    assert!(first.starts_with("POST /hook HTTP/1.1\r\n") && first.contains("application/json"), "{first}");
    let body: Notification = serde_json::from_str(first.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((body.event.as_str(), body.site.as_str()), ("rpo-recovered", "branch"));
    assert_eq!((body.job.as_deref(), body.text.as_str(), body.schema), (Some("web"), "it is back", 1));
    world.end().await;
}

#[tokio::test]
async fn who_refuses_is_not_asked_again_and_shows_as_a_failed_worker() {
    let servers = TaskTracker::new();
    let (address, _got) = server(&servers, &["404 Not Found", "200 OK"]).await;
    let world = World::new(section(Some(address), &[]));
    world.notifier.test("ops").unwrap();
    let hook = world.until(|hook| hook.failed == 1).await;
    assert!(hook.last_error.as_ref().unwrap().contains("404"), "{hook:?}");
    let warnings = world.workers.warnings();
    assert!(warnings[0].what.contains("notify-ops failed"), "{warnings:?}");
    world.notifier.test("ops").unwrap();
    world.until(|hook| hook.sent == 1).await;
    assert!(world.workers.warnings().is_empty());
    assert_eq!(world.notifier.test("other").unwrap_err().code, "not_found");
    world.end().await;
}

/// The rule of the whole module: a server that takes connections and never answers costs whoever tells nothing,
/// and what waits is bounded.
#[tokio::test]
async fn a_server_that_never_answers_holds_up_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut slow = section(Some(listener.local_addr().unwrap().to_string()), &[]);
    slow.timeout = Duration::from_secs(600);
    let world = World::new(slow);
    let started = Instant::now();
    for _ in 0..NOTIFY_QUEUED_MAX + 20 {
        world.notifier.tell(NotifyEvent::Failure, "failure", "web", "it failed", None);
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    let hook = world.notifier.list().remove(0);
    assert!((19..=20).contains(&hook.dropped) && hook.queued <= NOTIFY_QUEUED_MAX as u64, "{hook:?}");
    let stopping = Instant::now();
    world.end().await;
    assert!(stopping.elapsed() < Duration::from_secs(5), "a stop does not wait for it");
}

#[tokio::test]
async fn a_command_gets_json_and_environment_and_its_failure_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!("{{ echo \"$VBR_EVENT $VBR_JOB $VBR_SITE\"; cat; }} > {}", out.display());
    let world = World::new(section(None, &["/bin/sh", "-c", &script]));
    world.notifier.tell(NotifyEvent::Failure, "failure", "web", "it failed", None);
    world.until(|hook| hook.sent == 1).await;
    let text = std::fs::read_to_string(&out).unwrap();
    let (first, body) = text.split_once('\n').unwrap();
    assert_eq!(first, "failure web branch");
    let body: Notification = serde_json::from_str(body).unwrap();
    assert_eq!(body.text, "it failed");
    world.end().await;

    let world = World::new(section(None, &["/bin/sh", "-c", "echo too bad; exit 3"]));
    world.notifier.test("ops").unwrap();
    let hook = world.until(|hook| hook.failed == 1).await;
    let why = hook.last_error.unwrap();
    assert!(why.contains("exit status: 3") && why.ends_with("too bad"), "{why}");
    world.end().await;
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 1000 & echo $! > {}; yes; wait", pids.display());
    let world = World::new(section(None, &["/bin/sh", "-c", &script]));
    world.notifier.test("ops").unwrap();
    let hook = world.until(|hook| hook.failed == 1).await;
    assert!(hook.last_error.as_ref().unwrap().contains("was killed"), "{hook:?}");
    let child = std::fs::read_to_string(&pids).unwrap();
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        stat.map_or(true, |stat| stat.contains(") Z ")) // Nobody may be there to reap it.
    };
    for _ in 0..200 {
        if gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(gone(), "the child {child} lives on");
    world.end().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_told_of() {
    let world = World::new(section(None, &["/nowhere/tell"]));
    world.notifier.test("ops").unwrap();
    let hook = world.until(|hook| hook.failed == 1).await;
    assert!(hook.last_error.as_ref().unwrap().starts_with("/nowhere/tell: "), "{hook:?}");
    world.end().await;
}
