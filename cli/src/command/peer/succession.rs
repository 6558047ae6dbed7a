//! `vbrctl peer replace` and `vbrctl peer rotate`: other keys behind the same names.

use serde_json::json;
use vbr_api::{Peer, ReplaceRequest, Rotation};

use crate::client::{Patience, encode};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

const ROTATION: &str = "/v1/rotation";

pub async fn replace(context: &Context, name: &str, with: &str, yes: bool) -> Result<Exit, Failure> {
    let what = format!("Give the place of {name}, with its replicas, to {with}, and refuse its old key");
    context.confirm(&what, yes).await?;
    let path = format!("/v1/peers/{}/replace", encode(name));
    let document = context.client.post_json(&path, &ReplaceRequest { with: with.to_owned() }).await?;
    let peer: Peer = document.one()?;
    let line = format!("peer {} is the site that came as {with}; the old key is refused", peer.name);
    context.output.done(&document, &line, json!({}))?;
    Ok(Exit::Done)
}

pub async fn rotate(context: &Context, cancel: bool, show: bool) -> Result<Exit, Failure> {
    let document = match (cancel, show) {
        (true, _) => context.client.delete(ROTATION).await?,
        (_, true) => context.client.get(ROTATION).await?,
        _ => context.client.post(ROTATION, Patience::Quick).await?,
    };
    let rotation: Rotation = document.one()?;
    context.output.done(&document, &said(&rotation), json!({}))?;
    for wait in rotation.waiting.iter().filter(|_| !context.output.format.is_json()) {
        context.output.note(&format!("{}: {}", wait.peer, wait.why));
    }
    Ok(if rotation.next_peer_id.is_some() && !rotation.waiting.is_empty() {
        Exit::Pending
    } else {
        Exit::Done
    })
}

fn said(rotation: &Rotation) -> String {
    let (told, all) = (rotation.told.len(), rotation.told.len() + rotation.waiting.len());
    match &rotation.next_peer_id {
        None => format!("{} is the identity of this site, and no change is under way", rotation.peer_id),
        Some(next) if told == all => format!("every peer knows {next}; vbrd restarts with it by itself"),
        Some(next) => {
            format!("{told} of {all} peers know {next}; it comes into use by itself once the others do, too")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::RotationWait;

    #[test]
    fn how_far_it_has_got() {
        let mut rotation = Rotation { peer_id: "a".into(), ..Rotation::default() };
        assert!(said(&rotation).starts_with("a is the identity"));
        rotation.next_peer_id = Some("b".into());
        rotation.told = vec!["dr".into()];
        assert!(said(&rotation).starts_with("every peer knows b"));
        rotation.waiting = vec![RotationWait { peer: "x".into(), why: "away".into() }];
        assert!(said(&rotation).starts_with("1 of 2 peers know b"));
    }
}
