//! Who may order, and who may look: by the socket they come in at, and by what the kernel says of them.
//!
//! Two sockets. `vbrd.sock` takes orders; its mode (0660, group `vbradm`) keeps others out, and the caller's credentials are
//! compared with the same rule once more. `vbrd-view.sock` beside it answers questions on the list [`VIEWABLE`], nothing else,
//! and only members of `vbrview` or `vbradm`, root and vbrd's own user. Anybody can open it (0666): the group of a file
//! cannot be chosen inside the sandbox of the unit, which forbids chown(2), and credentials (`SO_PEERCRED`, `SO_PEERGROUPS`)
//! need no file mode. Whoever floods it has the places of that socket alone, orders have their own.
//!
//! Owns the count of refusals that were entered into the audit log. Bound: [`REFUSALS_MAX`] in [`REFUSALS_WITHIN`], so that
//! nobody who may only look can push orders out of that log; the rest is told in vbrd's log alone.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::remote::Remote;
use super::reply::Failure;
use super::socket::{Caller, group_id};
use super::{Api, audit};
use crate::error::Problem;

/// Members may give orders.
pub(super) const ORDER_GROUP: &str = "vbradm";
/// Members may look.
pub(super) const VIEW_GROUP: &str = "vbrview";
/// Groups of a caller that are looked at; the kernel's own bound is 65,536.
const GROUPS_MAX: usize = 1024;
/// Refusals that are entered into the audit log in [`REFUSALS_WITHIN`].
const REFUSALS_MAX: u32 = 20;
const REFUSALS_WITHIN: Duration = Duration::from_secs(60);

/// What those who may only look may ask. Not on it: the content of disks (`export`, `seed`), what reads whole disks
/// (`plan`), what may hold secrets of other systems (`notify`, `config`). A new route is refused until somebody decides.
const VIEWABLE: &[&str] = &[
    "/v1/status",
    "/v1/cache",
    "/v1/cache/warm",
    "/v1/cache/warm/{id}",
    "/v1/metrics",
    "/v1/audit",
    "/v1/doctor",
    "/v1/peers",
    "/v1/peers/{name}",
    "/v1/rotation",
    "/v1/hosts",
    "/v1/hosts/{name}",
    "/v1/vms",
    "/v1/jobs",
    "/v1/jobs/{name}",
    "/v1/jobs/{name}/history",
    "/v1/jobs/{name}/log",
    "/v1/sessions",
    "/v1/sessions/{id}",
    "/v1/repositories",
    "/v1/repositories/{job}",
    "/v1/replicas",
    "/v1/replicas/one",
    "/v1/failovers",
    "/v1/failovers/one",
    "/v1/restore-points",
    "/v1/restore-points/one",
    "/v1/throttle",
    "/v1/tasks",
    "/v1/tasks/{name}",
    "/v1/openapi.json",
];

/// What a caller may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Nothing: also whoever the kernel says nothing of.
    #[default]
    Nothing,
    /// Questions on the list.
    Look,
    Order,
}

/// The groups that count, as this machine numbers them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Groups {
    pub order: Option<u32>,
    pub view: Option<u32>,
}

/// A process at the other end of a socket.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

impl Groups {
    /// From `/etc/group`.
    pub fn of_system() -> Self {
        Self { order: group_id(ORDER_GROUP), view: group_id(VIEW_GROUP) }
    }

    /// What somebody may do at most, wherever they come in.
    pub fn access(self, caller: &Credentials, own_uid: u32) -> Access {
        let is_member = |group: Option<u32>| {
            group.is_some_and(|group| caller.gid == group || caller.groups.contains(&group))
        };
        match () {
            () if caller.uid == 0 || caller.uid == own_uid || is_member(self.order) => Access::Order,
            () if is_member(self.view) => Access::Look,
            () => Access::Nothing,
        }
    }
}

/// `/run/vbr/vbrd.sock` -> `/run/vbr/vbrd-view.sock`
pub(super) fn view_path(socket: &Path) -> PathBuf {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    let ending =
        socket.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    socket.with_file_name(format!("{stem}-view{ending}"))
}

/// Supplementary groups of the process at the other end, as they were when it connected.
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> std::io::Result<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_MAX];
    let mut bytes = std::mem::size_of_val(&groups[..]) as libc::socklen_t;
    // SAFETY: the buffer is as long as `bytes` says, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &mut bytes,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}

/// How many refusals were entered lately.
#[derive(Default)]
pub(super) struct Refusals {
    since: Mutex<Option<(Instant, u32)>>,
}

impl Refusals {
    /// True where one more may be entered.
    fn may_enter(&self, now: Instant) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, count) =
            since.filter(|(begun, _)| now.duration_since(*begun) < REFUSALS_WITHIN).unwrap_or((now, 0));
        *since = Some((begun, count + 1));
        count < REFUSALS_MAX
    }
}

/// Lets through what the caller may do; refuses the rest before anything else looks at it.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    // Orders of peers are judged by their own list; they come over a link, not over a socket.
    if request.extensions().get::<Remote>().is_some() {
        return next.run(request).await;
    }
    let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|info| info.0).unwrap_or_default();
    let problem = match caller.access {
        Access::Order => return next.run(request).await,
        Access::Look if is_viewable(&request) => return next.run(request).await,
        Access::Look => Problem::not_allowed(
            format!("{} {}", request.method(), request.uri().path()),
            format!(
                "this socket answers questions only, and members of the group {VIEW_GROUP} may ask no more than that"
            ),
            format!(
                "have a member of the group {ORDER_GROUP} do it, or become one: sudo usermod -aG {ORDER_GROUP} USER, then log in again"
            ),
        ),
        Access::Nothing => Problem::not_allowed(
            format!("{} {}", request.method(), request.uri().path()),
            format!("you are neither root nor a member of the group {ORDER_GROUP} or {VIEW_GROUP}"),
            format!(
                "to look: sudo usermod -aG {VIEW_GROUP} USER; to order: sudo usermod -aG {ORDER_GROUP} USER; then log in again"
            ),
        ),
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    tracing::warn!(%method, path, uid = caller.uid, pid = caller.pid, "refused: the caller may not do that");
    let refusal = Failure(problem).into_response();
    if caller.access == Access::Look && api.refusals.may_enter(Instant::now()) {
        let entry = audit::refusal(&request, refusal.status().as_u16());
        drop(request);
        audit::enter(&api, entry).await;
    }
    refusal
}

/// What does not exist here must not be handed on to another site either.
fn is_viewable(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    request.method() == Method::GET && route.is_some_and(|route| VIEWABLE.contains(&route))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::routes;

    #[test]
    fn who_may_what() {
        let groups = Groups { order: Some(70), view: Some(71) };
        let access =
            |uid, gid, more: &[u32]| groups.access(&Credentials { uid, gid, groups: more.to_vec() }, 900);
        for (uid, gid, more, wanted) in [
            (0, 0, &[][..], Access::Order),
            (900, 70, &[], Access::Order),
            (1000, 1000, &[27, 70], Access::Order),
            (1000, 70, &[], Access::Order),
            (1000, 1000, &[71], Access::Look),
            (1000, 71, &[27], Access::Look),
            (1000, 1000, &[71, 70], Access::Order),
            (1000, 1000, &[0, 27], Access::Nothing),
            (65534, 65534, &[], Access::Nothing),
        ] {
            assert_eq!(access(uid, gid, more), wanted, "{uid} {gid} {more:?}");
        }
        // Where a group does not exist nobody is in it.
        let none = Groups::default();
        assert_eq!(none.access(&Credentials { uid: 1, gid: 70, groups: vec![71] }, 900), Access::Nothing);
    }

    /// What is kept from those who may only look, by name: moving one of them to the list must be a decision.
    #[test]
    fn questions_that_are_not_for_everybody() {
        let kept: Vec<&str> = routes::table()
            .into_iter()
            .filter(|(method, path, _)| method == Method::GET && !VIEWABLE.contains(path))
            .map(|(_, path, _)| path)
            .collect();
        let wanted = [
            "/v1/config",
            "/v1/jobs/{name}/plan",
            "/v1/jobs/{name}/seed",
            "/v1/restore-points/export",
            "/v1/restore-points/nbd",
            "/v1/notify",
        ];
        assert_eq!(kept, wanted);
        for path in VIEWABLE {
            let is_route = routes::table().iter().any(|(method, p, _)| method == Method::GET && p == path);
            assert!(is_route, "{path} is no question");
        }
    }

    #[test]
    fn refusals_are_entered_within_bounds() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let entered = (0..100).filter(|_| refusals.may_enter(now)).count();
        assert_eq!(entered, REFUSALS_MAX as usize);
        assert!(!refusals.may_enter(now + REFUSALS_WITHIN / 2));
        assert!(refusals.may_enter(now + REFUSALS_WITHIN));
    }

    #[test]
    fn the_socket_beside() {
        assert_eq!(view_path(Path::new("/run/vbr/vbrd.sock")), Path::new("/run/vbr/vbrd-view.sock"));
        assert_eq!(view_path(Path::new("/srv/sock")), Path::new("/srv/sock-view"));
    }
}
