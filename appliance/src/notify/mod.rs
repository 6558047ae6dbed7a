//! Notifications: webhooks and commands that hear of sessions and of missed recovery points.
//!
//! Each hook of the configuration has a bounded queue and a task of its own, which delivers one notification after
//! the other. Whoever tells never waits: where a queue is full the notification is dropped and counted. What
//! cannot be delivered shows in the hook's figures and as a failed worker `notify-NAME`. Nothing is kept over a restart.
//!
//! Not its job: what is worth telling. Bounds: [`NOTIFY_QUEUED_MAX`] notifications a hook, [`TRIES`] tries of a
//! webhook, one of a command, each no longer than the hook's timeout.

mod command;
#[cfg(test)]
mod tests;
mod webhook;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{Moment, Notification, NotifyHook, SCHEMA, Session};

use crate::config::{NotifyEvent, NotifySection};
use crate::error::Problem;
use crate::limits::NOTIFY_QUEUED_MAX;
use crate::worker::{Role, Spec, Worker, Workers};

/// Tries of a webhook.
const TRIES: u32 = 4;
/// After the first of them; five times as long after each more.
const BACK_OFF: Duration = Duration::from_secs(1);

/// Between two signs that waiting is in order.
const BEAT: Duration = Duration::from_secs(5);

/// A try that failed.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    /// Another one may succeed.
    Passing(String),
    /// No other one would.
    Final(String),
}

impl Failed {
    fn why(self) -> String {
        match self {
            Self::Passing(why) | Self::Final(why) => why,
        }
    }
}

/// Everybody who hears of something.
pub struct Notifier {
    site: String,
    hooks: Vec<Arc<Hook>>,
}

#[derive(Default)]
struct Figures {
    sent: u64,
    failed: u64,
    dropped: u64,
    last_sent_at: Option<Moment>,
    last_error: Option<String>,
}

struct Hook {
    section: NotifySection,
    queue: mpsc::Sender<Notification>,
    worker: Arc<Worker>,
    figures: Mutex<Figures>,
    /// Until then it is in order that nothing is heard: an addressee has its time, and a pause is one.
    until: Mutex<Instant>,
    back_off: Duration,
}

impl Notifier {
    /// Starts a task for each hook.
    pub fn start(
        site: &str,
        sections: &[NotifySection],
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        Self::start_with(site, sections, workers, tasks, stop, BACK_OFF)
    }

    fn start_with(
        site: &str,
        sections: &[NotifySection],
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        back_off: Duration,
    ) -> Arc<Self> {
        let hooks = sections.iter().map(|section| {
            let (queue, waiting) = mpsc::channel(NOTIFY_QUEUED_MAX);
            let what = format!("delivers notifications to {}", addressee(section));
            let spec = Spec::new(&format!("notify-{}", section.name), Role::Site, &what);
            let worker = workers.register(spec.steady());
            let (section, figures, until) = (section.clone(), Mutex::default(), Mutex::new(Instant::now()));
            let hook = Arc::new(Hook { section, queue, worker, figures, until, back_off });
            tasks.spawn(hook.clone().serve(waiting, stop.clone()));
            hook
        });
        Arc::new(Self { site: site.to_string(), hooks: hooks.collect() })
    }

    /// Nobody.
    pub fn nobody() -> Arc<Self> {
        Arc::new(Self { site: String::new(), hooks: Vec::new() })
    }

    /// Tells those who want to hear of it; never waits. `name` is what the event is called, where it is not what
    /// hooks are configured by.
    pub fn tell(&self, event: NotifyEvent, name: &str, job: &str, text: &str, session: Option<&Session>) {
        for hook in &self.hooks {
            let section = &hook.section;
            let wanted = section.on.contains(&event);
            if wanted && (section.jobs.is_empty() || section.jobs.iter().any(|other| other == job)) {
                hook.offer(self.note(name, Some(job), text, session));
            }
        }
    }

    /// Delivers a notification for nothing, to see whether it arrives.
    pub fn test(&self, name: &str) -> Result<NotifyHook, Problem> {
        let hook = self.hooks.iter().find(|hook| hook.section.name == name);
        let hook = hook.ok_or_else(|| {
            Problem::not_found(
                format!("hook {name}"),
                "vbrctl notify list shows what [notify.NAME] configures",
            )
        })?;
        if !hook.offer(self.note("test", None, "this is a test, ordered by vbrctl notify test", None)) {
            let why = format!("{NOTIFY_QUEUED_MAX} notifications wait for it already");
            let next = "vbrctl notify list says why they are not delivered";
            return Err(Problem::new("busy", format!("hook {name}"), why, next).retry());
        }
        Ok(hook.view())
    }

    /// All hooks, by name.
    pub fn list(&self) -> Vec<NotifyHook> {
        self.hooks.iter().map(|hook| hook.view()).collect()
    }

    fn note(&self, event: &str, job: Option<&str>, text: &str, session: Option<&Session>) -> Notification {
        Notification {
            schema: SCHEMA,
            event: event.to_string(),
            at: Moment::now(),
            site: self.site.clone(),
            job: job.map(str::to_string),
            text: text.to_string(),
            session: session.cloned(),
        }
    }
}

impl Hook {
    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False where too many wait.
    fn offer(&self, note: Notification) -> bool {
        let taken = self.queue.try_send(note).is_ok();
        if !taken {
            self.figures().dropped += 1;
            self.worker.count("dropped", 1);
            tracing::warn!(hook = self.section.name, "too many notifications wait: one is dropped");
        }
        taken
    }

    /// Delivers what comes, one after the other, until the appliance stops.
    async fn serve(self: Arc<Self>, mut waiting: mpsc::Receiver<Notification>, stop: CancellationToken) {
        loop {
            let note = tokio::select! {
                note = waiting.recv() => note,
                () = stop.cancelled() => None,
            };
            let Some(note) = note else { return };
            self.worker.begin();
            let delivered = tokio::select! {
                delivered = self.deliver(&note) => delivered,
                never = self.wait_in_order() => match never {},
                () = stop.cancelled() => Err("vbrd stops".to_string()),
            };
            self.keep(&note, &delivered);
            self.worker.end(delivered.map(|()| None));
        }
    }

    /// What comes next may take so long.
    fn takes(&self, span: Duration) {
        self.worker.beat();
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + span;
    }

    /// Says that waiting is progress, for as long as it is.
    async fn wait_in_order(&self) -> Infallible {
        loop {
            tokio::time::sleep(BEAT).await;
            if Instant::now() < *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
                self.worker.beat();
            }
        }
    }

    fn keep(&self, note: &Notification, delivered: &Result<(), String>) {
        let (hook, event, mut figures) = (&self.section.name, &note.event, self.figures());
        match delivered {
            Ok(()) => {
                figures.sent += 1;
                figures.last_sent_at = Some(Moment::now());
                self.worker.count("sent", 1);
                tracing::debug!(hook, event, "a notification was delivered");
            }
            Err(why) => {
                figures.failed += 1;
                figures.last_error = Some(why.clone());
                self.worker.count("failed", 1);
                tracing::warn!(hook, event, job = note.job, why, "a notification was not delivered");
            }
        }
    }

    /// To both, where there are both.
    async fn deliver(&self, note: &Notification) -> Result<(), String> {
        let body = serde_json::to_vec(note).map_err(|error| error.to_string())?;
        let mut failed = Vec::new();
        if let Some(webhook) = &self.section.webhook {
            failed.extend(self.post(webhook, &body).await.err());
        }
        if !self.section.command.is_empty() {
            self.takes(self.section.timeout);
            failed.extend(command::run(&self.section, note, &body).await.err());
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    async fn post(&self, webhook: &crate::config::Webhook, body: &[u8]) -> Result<(), String> {
        let mut pause = self.back_off;
        for last in (1..=TRIES).map(|number| number == TRIES) {
            self.takes(self.section.timeout);
            match webhook::post(webhook, body, self.section.timeout).await {
                Ok(()) => return Ok(()),
                Err(Failed::Passing(why)) if !last => {
                    tracing::debug!(hook = self.section.name, why, "a webhook failed; it is tried again");
                }
                // Without the path, which may be a secret: errors are shown to remote consoles as well.
                Err(failed) => return Err(format!("{}: {}", webhook.authority, failed.why())),
            }
            self.takes(pause);
            tokio::time::sleep(pause).await;
            pause *= 5;
        }
        Ok(())
    }

    fn view(&self) -> NotifyHook {
        let (section, figures) = (&self.section, self.figures());
        NotifyHook {
            name: section.name.clone(),
            on: section.on.iter().map(|event| event.as_str().to_string()).collect(),
            jobs: section.jobs.clone(),
            webhook: section.webhook.as_ref().map(|webhook| webhook.url.clone()),
            command: section.command.clone(),
            sent: figures.sent,
            failed: figures.failed,
            dropped: figures.dropped,
            queued: (NOTIFY_QUEUED_MAX - self.queue.capacity()) as u64,
            last_sent_at: figures.last_sent_at,
            last_error: figures.last_error.clone(),
        }
    }
}

fn addressee(section: &NotifySection) -> String {
    let webhook = section.webhook.as_ref().map(|webhook| webhook.authority.clone());
    let both: Vec<String> = webhook.into_iter().chain(section.command.first().cloned()).collect();
    both.join(" and ")
}
