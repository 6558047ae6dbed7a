//! `vbrctl cache warm DIRECTORY`: all images that `vbrctl job seed` wrote into one, one after the other.

use std::path::Path;

use vbr_api::{DiskFormat, WarmRequest, Warming};

use super::warm::{POLL, end, follow, table};
use crate::carried::{Image, Manifest};
use crate::client::Patience;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::progress::bytes_bar;
use crate::show;

/// Looks at all of them before the first is ordered.
pub async fn run(
    context: &Context,
    directory: &Path,
    peer: Option<String>,
    check: bool,
    wait: bool,
) -> Result<Exit, Failure> {
    let Some(manifest) = Manifest::find(directory)? else {
        return Err(Failure::usage(
            format!("{} cannot be warmed", directory.display()),
            "it is a directory without the seed.json that vbrctl job seed writes last",
            "name an image, or write the directory to its end",
        ));
    };
    let images = manifest.images(directory)?;
    for (path, image) in images.iter().filter(|_| check) {
        let (path, image) = (path.clone(), (*image).clone());
        let checked = tokio::task::spawn_blocking(move || checked(&path, &image)).await;
        checked.unwrap_or_else(|error| {
            let why = error.to_string();
            Err(Failure::new(Exit::Failed, "internal", "Cannot check the images", why, "report this"))
        })?;
    }
    let mut exit = Exit::Done;
    for (path, _) in &images {
        let request = WarmRequest {
            path: Some(path.to_string_lossy().into_owned()),
            format: Some(DiskFormat::Raw),
            peer: peer.clone(),
            replica: None,
        };
        let document = context.client.post_json("/v1/cache/warm", &request).await?;
        let view: Warming = document.one()?;
        if wait {
            let (view, _) = follow(context, view, document).await?;
            exit = if exit == Exit::Done { end(&view) } else { exit };
        }
    }
    let document = context.client.get_patiently("/v1/cache/warm", Patience::AtMost(10 * POLL)).await?;
    show::print_list(context, &document, "nothing was warmed", &table)?;
    Ok(exit)
}

fn checked(path: &Path, image: &Image) -> Result<(), Failure> {
    let bar = bytes_bar(image.virtual_bytes, &format!("checking {}", image.file));
    let result = image.check(path, &|at| bar.set_position(at));
    bar.finish_and_clear();
    result
}
