//! `vbrctl config`: the configuration of vbrd.

use std::path::PathBuf;

use clap::Subcommand;
use vbr_api::ConfigView;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::show;

/// The configuration of vbrd
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the configuration in effect, as TOML
    #[command(after_help = "Example:\n  vbrctl config show")]
    Show,
    /// Check a configuration file without using it (runs vbrd check-config)
    #[command(after_help = "Example:\n  vbrctl config validate /etc/vbr/vbrd.toml")]
    Validate { file: PathBuf },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Show => {
                show::one(context, "/v1/config", false, &|config: &ConfigView, _| {
                    let from = config.file.as_deref().unwrap_or("no file, defaults only");
                    format!("# {}\n{}", crate::human::clean(from), config.toml)
                })
                .await
            }
            Self::Validate { file } => validate(context, file).await,
        }
    }
}

/// vbrd itself knows its configuration; this console links none of it.
async fn validate(context: &Context, file: PathBuf) -> Result<Exit, Failure> {
    let beside =
        std::env::current_exe().ok().map(|exe| exe.with_file_name("vbrd")).filter(|vbrd| vbrd.is_file());
    let vbrd = beside.unwrap_or_else(|| "vbrd".into());
    let mut command = tokio::process::Command::new(&vbrd);
    command.arg("check-config").arg("--config").arg(&file).kill_on_drop(true);
    let status = command.status().await.map_err(|error| {
        Failure::new(
            Exit::Failed,
            "vbrd_missing",
            "Cannot run vbrd check-config",
            format!("{}: {error}", vbrd.display()),
            "install vbrd, or put it beside vbrctl or into PATH",
        )
    })?;
    if status.success() {
        if !context.output.format.is_json() {
            context.output.note(&format!("{} is good", file.display()));
        }
        return Ok(Exit::Done);
    }
    Err(Failure::new(
        Exit::Failed,
        "config_invalid",
        format!("{} is not a good configuration", file.display()),
        format!("vbrd check-config said so above ({status})"),
        "correct the file, then check it again",
    ))
}
