//! Scanning a replica's directory: the catalog is what is found there, and a crash's leftovers are settled.
//!
//! Order: half removed files, records, an interrupted removal, points, buildings, pages files. What
//! cannot be read is listed as damaged and left alone.

use std::sync::{Arc, PoisonError};

use vbr_api::{DiskFormat, name_is_valid};

use super::files;
use super::point::Point;
use super::record::PointRecord;
use super::replica::Replica;
use super::shared::manifest_name;
use crate::repository::RepositoryError;

impl Replica {
    pub(super) fn scan(&self) -> Result<(), RepositoryError> {
        let root = &self.shared.core.root;
        for name in files::names_in(&self.shared.retiring_dir())? {
            files::remove_dir_all(&self.shared.retiring_dir().join(name))?;
        }
        let mut found: Vec<(u64, String, Option<String>)> = Vec::new();
        for id in files::names_in(&self.shared.points_dir())?.into_iter().filter(|id| name_is_valid(id)) {
            let read = root.read_record::<PointRecord>(&self.shared.point_dir(&id).join("point.json"));
            let checked =
                read.map_err(|e| e.to_string()).and_then(|record| record.check(&id).map(|()| record));
            match checked {
                Ok(record) => {
                    self.shared.core.clock.at_least(record.observed_ms);
                    found.push((record.sequence, id.clone(), None));
                    self.shared.set_record(&id, Some(record));
                }
                Err(why) => {
                    tracing::warn!(point = id, why, "a restore point cannot be read; it is left alone");
                    found.push((0, id, Some(why)));
                }
            }
        }
        found.sort();
        self.recover_retire();
        let mut points = Vec::new();
        for (_, id, unreadable) in found {
            // Recovery may have finished removing it.
            if unreadable.is_none() && self.shared.record(&id).is_err() {
                continue;
            }
            let unreadable = unreadable.or_else(|| self.missing_file(&id));
            points.push(Arc::new(Point::new(self.shared.clone(), id, unreadable)));
        }
        *self.points.write().unwrap_or_else(PoisonError::into_inner) = points;
        self.mark_retiring();
        self.scan_failover()?;
        self.sweep_buildings()?;
        self.sweep_pages()
    }

    /// A point whose files are not all there is damaged, although its record is good.
    fn missing_file(&self, id: &str) -> Option<String> {
        let record = self.shared.record(id).ok()?;
        let dir = self.shared.point_dir(id);
        for (n, disk) in record.disks.iter().enumerate() {
            let names = [disk.file.clone(), manifest_name(n)];
            let flags = rustix::fs::OFlags::RDONLY;
            for name in names {
                match self.shared.core.root.open_beneath(&dir.join(&name), flags) {
                    Err(error) => return Some(error.to_string()),
                    Ok(file) if name == disk.file && disk.image == DiskFormat::Raw => {
                        let len = file.metadata().map(|meta| meta.len()).unwrap_or(0);
                        if len != disk.disk_len {
                            return Some(format!("{name} holds {len} bytes, not {}", disk.disk_len));
                        }
                    }
                    Ok(_) => {}
                }
            }
            if let Err(error) = self.shared.below(disk.backing.clone()) {
                return Some(error.to_string());
            }
        }
        None
    }

    /// Drops buildings that cannot go on: begun and not finished beginning, damaged, without a base.
    fn sweep_buildings(&self) -> Result<(), RepositoryError> {
        for name in files::names_in(&self.shared.buildings_dir())? {
            let kept = self.building_record(&name).is_some_and(|(record, _)| {
                record.base.as_ref().is_none_or(|base| self.shared.record(base).is_ok())
            });
            if !kept {
                tracing::warn!(session = name, "a building without a valid record is discarded");
                files::remove_dir_all(&self.shared.buildings_dir().join(name))?;
            }
        }
        Ok(())
    }
}
