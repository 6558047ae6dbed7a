//! What two sites say to each other apart from replication: grants, orders of a remote console, a new identity. Pure
//! types, no IO.
//!
//! An order is named by its caller ([`Call`]), so that its answer can be asked for again over another link and the order
//! is carried out once. Answers are packed (zstd) and come in parts of [`PART_BYTES_MAX`].

use serde::{Deserialize, Serialize};

/// Bytes of one part of an answer: control stays quick beside it.
pub const PART_BYTES_MAX: usize = 128 * 1024;

/// Names an order; random.
pub type Call = [u8; 16];

/// The part of [`Request`](super::message::Request) that is about the sites themselves. Only to a site with the
/// capability (see [`capability`](super::capability)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteRequest {
    /// What the asking site may do at the asked one.
    Granted,
    /// An order of a console at the asking site.
    Manage {
        /// Its name.
        call: Call,
        /// What to do.
        order: ManageOrder,
    },
    /// The answer to an order that was given before, from a position on.
    ManageResult {
        /// Its name.
        call: Call,
        /// First byte wanted of the packed answer.
        offset: u32,
    },
    /// The asking site will have another identity.
    Rotate(RotationNotice),
}

/// An HTTP request of the management API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManageOrder {
    /// `GET`, …
    pub method: String,
    /// With its query.
    pub path: String,
    /// JSON, or nothing.
    pub body: Vec<u8>,
    /// Who gave it.
    pub user: Option<String>,
}

/// Proof that whoever has the old key has the new one, too, and wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationNotice {
    /// The new public key, as protobuf.
    pub next: Vec<u8>,
    /// Both identities, signed by the key in use.
    pub by_old: Vec<u8>,
    /// The same, signed by the new one.
    pub by_new: Vec<u8>,
}

/// The answer to a [`SiteRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteResponse {
    /// `replicate`, `manage`.
    Granted(Vec<String>),
    /// The order is not over yet: ask again.
    Pending,
    /// No such order is known here, or not any more.
    Unknown,
    /// A part of the answer.
    Part(ManagePart),
    /// The new identity is on stable storage, and let in.
    Rotated,
}

/// A part of the answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagePart {
    /// As in HTTP.
    pub status: u16,
    /// Of the body.
    pub content_type: String,
    /// Of the body.
    pub plain_bytes: u32,
    /// Of the packed body.
    pub packed_bytes: u32,
    /// Where these bytes stand in it.
    pub offset: u32,
    /// At most [`PART_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Request, Response, pack, unpack};

    fn golden<T>(value: &T, hex: &str)
    where
        T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
    {
        let bytes = pack(value);
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), hex);
        assert_eq!(unpack::<T>(0, &bytes).as_ref(), Ok(value));
    }

    /// Numbers of the variants never change: a new one goes to the end.
    #[test]
    fn golden_site_requests() {
        let call = [7; 16];
        let sevens = "07".repeat(16);
        golden(&Request::Site(SiteRequest::Granted), "0800");
        let order = ManageOrder {
            method: "GET".into(),
            path: "/v1".into(),
            body: vec![1, 2],
            user: Some("a".into()),
        };
        golden(
            &Request::Site(SiteRequest::Manage { call, order }),
            &format!("0801{sevens}03474554032f7631020102010161"),
        );
        golden(&Request::Site(SiteRequest::ManageResult { call, offset: 300 }), &format!("0802{sevens}ac02"));
        let notice = RotationNotice { next: vec![1], by_old: vec![2, 3], by_new: vec![] };
        golden(&Request::Site(SiteRequest::Rotate(notice)), "0803010102020300");
    }

    #[test]
    fn golden_site_responses() {
        golden(&Response::Site(SiteResponse::Granted(vec!["manage".into()])), "080001066d616e616765");
        golden(&Response::Site(SiteResponse::Pending), "0801");
        golden(&Response::Site(SiteResponse::Unknown), "0802");
        let part = ManagePart {
            status: 200,
            content_type: "a".into(),
            plain_bytes: 5,
            packed_bytes: 4,
            offset: 3,
            bytes: vec![9],
        };
        golden(&Response::Site(SiteResponse::Part(part)), "0803c80101610504030109");
        golden(&Response::Site(SiteResponse::Rotated), "0804");
    }
}
