//! Stages 3 and 5: the WAN accelerators. Source: chunk, dedup, compress. Target: resolve, verify, cache.
//!
//! Both ends of the wire meet here: `recipe` and `batch` are what the source makes and the target takes
//! apart, `identify` turns a disk into ids, `resolve` turns ids back into verified bytes. No module
//! here owns a session; `job` joins them.

pub mod batch;
pub mod global_cache;
pub mod identify;
pub mod recipe;
pub mod resolve;
