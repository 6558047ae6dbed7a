//! What the sessions of a source share: handed from the composition root to the manager, from there to
//! every driver. No logic; each part looks after itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ahead::Gates;
use super::bases::BaseChunks;
use super::records::Records;
use super::refresh::Refreshes;
use crate::accelerator::anchors::AnchorStore;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::shared_filter::SharedFilters;
use crate::host::HostRegistry;
use crate::repository::source::SourceRepository;
use crate::schedule::window::Window;
use crate::wire::Wire;

/// What sessions share.
pub struct Parts {
    /// The wire.
    pub wire: Wire,
    /// Source hosts.
    pub hosts: Arc<HostRegistry>,
    /// The backup repository.
    pub repository: Arc<SourceRepository>,
    /// Where content was seen.
    pub anchors: Arc<AnchorStore>,
    /// What targets have from two branches or more.
    pub filters: Arc<SharedFilters>,
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// Keep what is sent in it.
    pub keep_sent: bool,
    /// Look for bases.
    pub look_for_bases: bool,
    pub(super) base_chunks: Arc<BaseChunks>,
    pub(super) refreshes: Refreshes,
    pub(super) gates: Gates,
    /// What the line to each peer was last seen to take, bytes a second.
    pub(super) lines: Mutex<BTreeMap<String, f64>>,
    pub(super) records: Records,
    pub(super) compressors: Arc<Semaphore>,
    /// Room for packed batches.
    pub(super) packed: Arc<Semaphore>,
    pub(super) slots: Arc<Semaphore>,
    /// The appliance stops.
    pub stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What a source keeps.
pub struct SourceStores {
    /// The backup repository.
    pub repository: Arc<SourceRepository>,
    /// Where content was seen.
    pub anchors: Arc<AnchorStore>,
    /// What targets have from two branches or more.
    pub filters: Arc<SharedFilters>,
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// Keep what is sent in it.
    pub keep_sent: bool,
    /// Look for bases.
    pub look_for_bases: bool,
    /// The hours in which its jobs run by themselves.
    pub window: Option<Window>,
}
