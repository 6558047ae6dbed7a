//! A job's definition as a TOML file: what `job export` prints and `job create --from` reads.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vbr_api::{DiskFormat, DiskSpec, FreeSpace, Job, JobSpec, Priority, Retry};

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

/// A definition is some lines long.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file. Tables last, as TOML wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Disks of the VM that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_space: Option<FreeSpace>,
    /// Bits a second: `8Mbit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// A span of time: `15m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuous: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// How often, and the first pause: `3/5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
    /// A replica or an image at the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// A replica at the target to go on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: String,
    #[serde(default = "raw")]
    pub format: DiskFormat,
}

fn raw() -> DiskFormat {
    DiskFormat::Raw
}

impl Definition {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|error| Failure::io("Cannot read the job's definition", path, &error))?;
        Self::parse(&text).map_err(|why| {
            Failure::usage(
                format!("{} is no definition of a job", path.display()),
                why,
                "see the form with: vbrctl job export NAME",
            )
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
            Some(span) => {
                let line = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
                format!("line {line}: {}", error.message())
            }
            None => error.message().to_string(),
        })
    }

    fn of(spec: &JobSpec) -> Self {
        let asked = |count: u32| Some(count).filter(|count| *count > 0);
        let disk = |disk: &DiskSpec| Disk { path: disk.path.clone(), format: disk.format };
        Self {
            name: Some(spec.name.clone()),
            vm: spec.vm.clone(),
            exclude: spec.exclude.clone(),
            target: Some(spec.target.clone()),
            keep: spec.keep,
            keep_daily: asked(spec.keep_calendar.daily),
            keep_weekly: asked(spec.keep_calendar.weekly),
            keep_monthly: asked(spec.keep_calendar.monthly),
            keep_yearly: asked(spec.keep_calendar.yearly),
            free_space: Some(spec.free_space).filter(|free| *free != FreeSpace::Keep),
            rate: spec.rate_bps.map(human::exact_rate),
            every: spec.schedule.every_ms.map(human::exact_span),
            at: spec.schedule.at.clone(),
            after: spec.schedule.after.clone(),
            continuous: Some(spec.schedule.continuous).filter(|continuous| *continuous),
            window: spec.schedule.window.clone(),
            priority: Some(spec.priority).filter(|priority| *priority != Priority::default()),
            retry: Some(spec.retry).filter(|retry| *retry != Retry::default()).map(human::retry),
            seed: spec.seed.clone(),
            map: spec.map.clone(),
            enabled: Some(spec.enabled),
            disks: spec.disks.iter().map(disk).collect(),
        }
    }
}

/// Prints a job's definition: TOML, or vbrd's own form with `-o json`.
pub async fn export(context: &Context, path: &str) -> Result<Exit, Failure> {
    let job: Job = context.client.get(path).await?.one()?;
    let fail = |why: String| {
        Failure::new(Exit::Failed, "internal", "Cannot write the definition", why, "report this")
    };
    if context.output.format.is_json() {
        let text = serde_json::to_string(&job.spec).map_err(|error| fail(error.to_string()))?;
        context.output.json_object(&text)?;
    } else {
        let text = toml::to_string(&Definition::of(&job.spec)).map_err(|error| fail(error.to_string()))?;
        context.output.emit(&text)?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use vbr_api::Schedule;

    use super::*;

    #[test]
    fn what_is_exported_is_read_again() {
        let spec = JobSpec {
            name: "web".into(),
            vm: None,
            disks: vec![
                DiskSpec { path: "/srv/a \"b\".img".into(), format: DiskFormat::Raw },
                DiskSpec { path: "/srv/c".into(), format: DiskFormat::Qcow2 },
            ],
            exclude: vec!["swap.img".into()],
            target: "dr/fast".into(),
            keep: Some(14),
            keep_calendar: vbr_api::KeepCalendar { daily: 7, weekly: 4, monthly: 12, yearly: 0 },
            free_space: FreeSpace::Auto,
            rate_bps: Some(8_000_000),
            schedule: Schedule {
                every_ms: Some(5_400_000),
                window: Some("20:00-06:00".into()),
                ..Schedule::default()
            },
            priority: Priority::High,
            retry: Retry { count: 5, pause_ms: 90_000 },
            map: Some("web-old".into()),
            seed: Some("/seed/a,,b.img,format=qcow2".into()),
            enabled: false,
        };
        let text = toml::to_string(&Definition::of(&spec)).unwrap();
        assert!(text.contains("rate = \"8Mbit\""), "{text}");
        assert_eq!(Definition::parse(&text).unwrap(), Definition::of(&spec));
    }

    #[test]
    fn errors_name_the_line() {
        let why = Definition::parse("name = \"web\"\nevry = \"15m\"\n").unwrap_err();
        assert!(why.starts_with("line 2: ") && why.contains("evry"), "{why}");
        assert!(Definition::parse("[[disks]]\npath = \"/a\"\nsize = 1\n").is_err());
        assert_eq!(Definition::parse("[[disks]]\npath = \"/a\"\n").unwrap().disks[0].format, DiskFormat::Raw);
    }
}
