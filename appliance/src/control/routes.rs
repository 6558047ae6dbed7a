//! The one table of routes, and the OpenAPI document that describes each of them.

use axum::Router;
use axum::extract::State;
use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, patch, post};
use utoipa::OpenApi;

use super::{
    Api, audit, doctor, failbacks, failovers, hosts, housekeeping, jobs, life, nbd, peers, points, replicas,
    reply, repositories, sessions, site, throttle, warm,
};

/// Method, path, handler. Tested: each is in the document and the other way round.
pub(super) fn table() -> Vec<(Method, &'static str, MethodRouter<Api>)> {
    let get_ = |path, handler| (Method::GET, path, handler);
    let post_ = |path, handler| (Method::POST, path, handler);
    let delete_ = |path, handler| (Method::DELETE, path, handler);
    let mut all = vec![
        get_("/v1/status", get(site::status)),
        get_("/v1/config", get(site::config)),
        get_("/v1/cache", get(site::cache)),
        get_("/v1/cache/warm", get(warm::list)),
        post_("/v1/cache/warm", post(warm::order)),
        get_("/v1/cache/warm/{id}", get(warm::show)),
        post_("/v1/cache/warm/{id}/cancel", post(warm::cancel)),
        get_("/v1/metrics", get(site::metrics)),
        get_("/v1/audit", get(audit::list)),
        get_("/v1/doctor", get(doctor::examine)),
        post_("/v1/doctor/disks", post(doctor::try_disks)),
        get_("/v1/peers", get(peers::list)),
        get_("/v1/peers/{name}", get(peers::show)),
        delete_("/v1/peers/{name}", delete(peers::remove)),
        post_("/v1/peers/invite", post(peers::invite)),
        post_("/v1/peers/join", post(peers::join)),
        post_("/v1/peers/{name}/grant", post(peers::grant)),
        post_("/v1/peers/{name}/revoke", post(peers::revoke)),
        post_("/v1/peers/{name}/replace", post(life::replace)),
        get_("/v1/rotation", get(life::rotation)),
        post_("/v1/rotation", post(life::rotate)),
        delete_("/v1/rotation", delete(life::cancel_rotation)),
        get_("/v1/hosts", get(hosts::list)),
        post_("/v1/hosts", post(hosts::add)),
        get_("/v1/hosts/{name}", get(hosts::show)),
        delete_("/v1/hosts/{name}", delete(hosts::remove)),
        get_("/v1/vms", get(hosts::vms)),
        post_("/v1/vms/power", post(hosts::power)),
        get_("/v1/jobs", get(jobs::list)),
        post_("/v1/jobs", post(jobs::create)),
        get_("/v1/jobs/{name}", get(jobs::show)),
        delete_("/v1/jobs/{name}", delete(jobs::remove)),
        (Method::PATCH, "/v1/jobs/{name}", patch(jobs::edit)),
        post_("/v1/jobs/{name}/run", post(jobs::run)),
        post_("/v1/jobs/{name}/enable", post(jobs::enable)),
        post_("/v1/jobs/{name}/disable", post(jobs::disable)),
        get_("/v1/jobs/{name}/plan", get(jobs::plan)),
        get_("/v1/jobs/{name}/seed", get(jobs::seed)),
        get_("/v1/jobs/{name}/history", get(jobs::history)),
        get_("/v1/sessions", get(sessions::list)),
        get_("/v1/sessions/{id}", get(sessions::show)),
        post_("/v1/sessions/{id}/cancel", post(sessions::cancel)),
        get_("/v1/repositories", get(repositories::list)),
        get_("/v1/repositories/{job}", get(repositories::show)),
        post_("/v1/repositories/{job}/verify", post(repositories::verify)),
        post_("/v1/repositories/{job}/rebuild", post(repositories::rebuild)),
        get_("/v1/replicas", get(replicas::list)),
        get_("/v1/replicas/one", get(replicas::show)),
        delete_("/v1/replicas/one", delete(replicas::remove)),
        post_("/v1/replicas/verify", post(replicas::verify)),
        get_("/v1/restore-points", get(points::list)),
        get_("/v1/restore-points/one", get(points::show)),
        delete_("/v1/restore-points/one", delete(points::remove)),
        post_("/v1/restore-points/verify", post(points::verify)),
        post_("/v1/restore-points/pin", post(points::pin)),
        post_("/v1/restore-points/unpin", post(points::unpin)),
        get_("/v1/restore-points/export", get(points::export)),
        get_("/v1/restore-points/nbd", get(nbd::serve)),
        get_("/v1/throttle", get(throttle::list)),
        post_("/v1/throttle", post(throttle::set)),
        delete_("/v1/throttle", delete(throttle::clear_all)),
        delete_("/v1/throttle/{name}", delete(throttle::clear)),
        get_("/v1/tasks", get(housekeeping::tasks)),
        get_("/v1/tasks/{name}", get(housekeeping::task)),
        post_("/v1/tasks/{name}/run", post(housekeeping::run_task)),
        get_("/v1/jobs/{name}/log", get(housekeeping::job_log)),
        get_("/v1/notify", get(housekeeping::hooks)),
        post_("/v1/notify/{name}/test", post(housekeeping::test_hook)),
        get_("/v1/openapi.json", get(document)),
    ];
    all.extend(state_table());
    all.extend(failover_table());
    all.extend(failback_table());
    all
}

fn state_table() -> [(Method, &'static str, MethodRouter<Api>); 2] {
    [
        (Method::POST, "/v1/state/export", post(life::export_state)),
        (Method::POST, "/v1/state/import", life::import_route()),
    ]
}

fn failover_table() -> [(Method, &'static str, MethodRouter<Api>); 7] {
    [
        (Method::GET, "/v1/failovers", get(failovers::list)),
        (Method::GET, "/v1/failovers/one", get(failovers::show)),
        (Method::POST, "/v1/failovers/start", post(failovers::start)),
        (Method::POST, "/v1/failovers/test", post(failovers::test)),
        (Method::POST, "/v1/failovers/planned", post(failovers::planned)),
        (Method::POST, "/v1/failovers/undo", post(failovers::undo)),
        (Method::POST, "/v1/failovers/commit", post(failovers::commit)),
    ]
}

fn failback_table() -> [(Method, &'static str, MethodRouter<Api>); 3] {
    [
        (Method::POST, "/v1/failbacks/start", post(failbacks::start)),
        (Method::POST, "/v1/failbacks/undo", post(failbacks::undo)),
        (Method::POST, "/v1/failbacks/commit", post(failbacks::commit)),
    ]
}

/// All routes; what is not among them answers a problem as well.
pub(super) fn router() -> Router<Api> {
    table()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler))
        .fallback(reply::unknown_route)
        .method_not_allowed_fallback(reply::unknown_method)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "site", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn document(State(_): State<Api>) -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(openapi())
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vbr management API",
        description = "Served by vbrd on a unix socket; vbrctl is its console."
    ),
    paths(
        site::status,
        site::config,
        site::cache,
        site::metrics,
        audit::list,
        doctor::examine,
        doctor::try_disks,
        document,
        peers::list,
        peers::show,
        peers::invite,
        peers::join,
        peers::grant,
        peers::revoke,
        peers::remove,
        life::replace,
        life::rotation,
        life::rotate,
        life::cancel_rotation,
        life::export_state,
        life::import_state,
        hosts::list,
        hosts::add,
        hosts::show,
        hosts::remove,
        hosts::vms,
        hosts::power,
        jobs::list,
        jobs::create,
        jobs::show,
        jobs::remove,
        jobs::edit,
        jobs::run,
        jobs::enable,
        jobs::disable,
        jobs::plan,
        jobs::seed,
        jobs::history,
        sessions::list,
        sessions::show,
        sessions::cancel,
        repositories::list,
        repositories::show,
        repositories::verify,
        repositories::rebuild,
        replicas::list,
        replicas::show,
        replicas::remove,
        replicas::verify,
        points::list,
        points::show,
        points::remove,
        points::verify,
        points::pin,
        points::unpin,
        points::export,
        nbd::serve,
        failovers::list,
        failovers::show,
        failovers::start,
        failovers::test,
        failovers::planned,
        failovers::undo,
        failovers::commit,
        failbacks::start,
        failbacks::undo,
        failbacks::commit,
        throttle::list,
        throttle::set,
        throttle::clear,
        throttle::clear_all,
        housekeeping::tasks,
        housekeeping::task,
        housekeeping::run_task,
        housekeeping::job_log,
        housekeeping::hooks,
        housekeeping::test_hook,
        warm::list,
        warm::order,
        warm::show,
        warm::cancel,
    )
)]
struct Document;
