//! Slots: which of the sessions that want to run may. Sans-IO; time is handed in.
//!
//! A session takes a slot for each disk it works on at once: at its source host, on the link to its peer and
//! at the datastore there; and one of the site's sessions. The queue is in the order of *turns*: the moment
//! somebody asked, put off by [`AGE`] for each step of priority below high. So high goes before normal before
//! low, equals go first come first served, and whoever waits long enough goes before whoever comes later,
//! whatever its priority. Who lacks a slot keeps those behind from taking it; who waited for [`AGE`] keeps all
//! that it needs, so that two scarce things cannot pass it by in turns. What lacks nothing passes.
//!
//! Not its job: when a job is due, and what a session does with its slots. Bound: an entry a session.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use vbr_api::Priority;

/// One step of priority is worth this much waiting.
pub const AGE: Duration = Duration::from_secs(600);

/// What there is a bounded number of slots of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Sessions of the site.
    Site,
    /// A source host.
    Host(String),
    /// The link to a peer.
    Link(String),
    /// A datastore of a peer, as jobs name it.
    Datastore(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("this site"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Link(name) => write!(f, "link {name}"),
            Self::Datastore(name) => write!(f, "datastore {name}"),
        }
    }
}

/// Slots of each resource of a kind; at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sessions at once.
    pub site: u32,
    /// Disks at once of a source host.
    pub host: u32,
    /// Disks at once over a link.
    pub link: u32,
    /// Disks at once into a datastore.
    pub datastore: u32,
}

impl Bounds {
    /// Slots of a resource.
    pub fn of(&self, resource: &Resource) -> u32 {
        match resource {
            Resource::Site => self.site,
            Resource::Host(_) => self.host,
            Resource::Link(_) => self.link,
            Resource::Datastore(_) => self.datastore,
        }
        .max(1)
    }
}

/// What a session wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Source host.
    pub host: String,
    /// Peer.
    pub peer: String,
    /// Target as the job names it: peer, or peer and datastore.
    pub datastore: String,
    /// Disks it works on at once; fewer where a bound is lower.
    pub tasks: u32,
    /// Its job's.
    pub priority: Priority,
}

/// A session's place in the broker.
pub type Ticket = u64;

/// A session that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose.
    pub ticket: Ticket,
    /// The first thing it lacks.
    pub lacks: Resource,
    /// Among those that wait and need it, from 1.
    pub place: u32,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    /// When it asked.
    asked: Instant,
    /// `asked`, put off by priority.
    turn: Instant,
    wants: Vec<(Resource, u32)>,
    tasks: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Broker {
    bounds: Bounds,
    used: BTreeMap<Resource, u32>,
    held: BTreeMap<Ticket, Vec<(Resource, u32)>>,
    /// In the order of turns.
    queue: Vec<Waiting>,
    next: Ticket,
}

impl Broker {
    /// Nothing is held.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, used: BTreeMap::new(), held: BTreeMap::new(), queue: Vec::new(), next: 1 }
    }

    /// A session waits from now on; `asked` is earlier for one that had slots and gave them back.
    pub fn enter(&mut self, need: Need, asked: Instant) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        let steps = match need.priority {
            Priority::High => 0,
            Priority::Normal => 1,
            Priority::Low => 2,
        };
        let wants =
            [Resource::Host(need.host), Resource::Link(need.peer), Resource::Datastore(need.datastore)];
        let tasks = wants.iter().map(|resource| self.bounds.of(resource)).fold(need.tasks.max(1), u32::min);
        let wants =
            wants.into_iter().map(|resource| (resource, tasks)).chain([(Resource::Site, 1)]).collect();
        let turn = asked + AGE * steps;
        // Tickets grow: equals keep the order in which they came.
        let at = self.queue.partition_point(|other| other.turn <= turn);
        self.queue.insert(at, Waiting { ticket, asked, turn, wants, tasks });
        ticket
    }

    /// A session is over, or waits no more.
    pub fn leave(&mut self, ticket: Ticket) {
        self.queue.retain(|waiting| waiting.ticket != ticket);
        for (resource, slots) in self.held.remove(&ticket).unwrap_or_default() {
            if let Some(used) = self.used.get_mut(&resource) {
                *used = used.saturating_sub(slots);
            }
        }
    }

    /// Sessions that have their slots.
    pub fn running(&self) -> usize {
        self.held.len()
    }

    /// Gives out what is free: who may run now, on how many disks at once; and who waits for what.
    pub fn settle(&mut self, now: Instant) -> (Vec<(Ticket, u32)>, Vec<Place>) {
        let (mut granted, mut places) = (Vec::new(), Vec::new());
        let mut reserved: BTreeSet<Resource> = BTreeSet::new();
        let mut waiting: BTreeMap<Resource, u32> = BTreeMap::new();
        for entry in std::mem::take(&mut self.queue) {
            let lacks = |(resource, slots): &&(Resource, u32)| {
                let used = self.used.get(resource).copied().unwrap_or(0);
                used + slots > self.bounds.of(resource) || reserved.contains(resource)
            };
            let lacking: Vec<Resource> =
                entry.wants.iter().filter(lacks).map(|(resource, _)| resource.clone()).collect();
            let Some(first) = lacking.first().cloned() else {
                for (resource, slots) in &entry.wants {
                    *self.used.entry(resource.clone()).or_default() += slots;
                }
                granted.push((entry.ticket, entry.tasks));
                self.held.insert(entry.ticket, entry.wants);
                continue;
            };
            for (resource, _) in &entry.wants {
                *waiting.entry(resource.clone()).or_default() += 1;
            }
            let place = waiting.get(&first).copied().unwrap_or(1);
            places.push(Place { ticket: entry.ticket, lacks: first, place });
            match now.saturating_duration_since(entry.asked) >= AGE {
                true => reserved.extend(entry.wants.iter().map(|(resource, _)| resource.clone())),
                false => reserved.extend(lacking),
            }
            self.queue.push(entry);
        }
        self.used.retain(|_, used| *used > 0);
        (granted, places)
    }
}
