//! Stages 3 and 5: the WAN accelerators. Source: chunk, dedup, compress. Target: resolve, verify, cache.
//!
//! Both ends of the wire meet here: `recipe` and `batch` are what the source makes and the target takes
//! apart, `branches` makes code ready for it, `identify` turns a disk into ids, `resolve` turns ids back into verified bytes. `anchors` finds
//! bases, `prefix` chooses among them, `effort` decides how hard to work. No module
//! here owns a session; `job` joins them.

pub mod anchors;
pub mod batch;
pub mod block_index;
pub mod branches;
pub mod effort;
pub mod global_cache;
pub mod identify;
pub mod prefix;
pub mod recipe;
pub mod resolve;
pub mod shared_filter;
#[cfg(test)]
mod tests_fuzz;
