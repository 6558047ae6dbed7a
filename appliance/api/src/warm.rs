//! Seeding: images and restore points whose chunks count as known at this site.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DiskFormat, ErrorBody, Moment};

/// `POST /v1/cache/warm`: either a path or a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmRequest {
    /// Absolute path of an image on the machine of vbrd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of that image; raw unless said, never probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// `[SITE/]REPLICA[@POINT]`; its latest restore point unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// For which peer's dedup domain an image is read; needed where peers are of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WarmState {
    /// Others come first.
    Waiting,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl WarmState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// `GET /v1/cache/warm/{id}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warming {
    pub id: String,
    /// The image, or the restore point.
    pub subject: String,
    /// The peer that asked for it as a seed; none where this site's operator did.
    pub asked_by: Option<String>,
    pub state: WarmState,
    /// What is to be read, holes included.
    pub total_bytes: u64,
    /// How far it has got.
    pub read_bytes: u64,
    /// Chunks that are not zero.
    pub chunks: u64,
    /// Those that this site held elsewhere already.
    pub known_chunks: u64,
    /// Chunks that were damaged and are not held.
    pub bad_chunks: u64,
    /// Chunks whose blocks of 4 KiB are found as well; fewer where `accelerator.block_memory` is too small.
    pub chunks_by_block: u64,
    #[schema(value_type = String)]
    pub ordered_at: Moment,
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Moment>,
    pub error: Option<ErrorBody>,
}
