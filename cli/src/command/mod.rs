//! One noun a file: a clap struct whose doc comments are the help, and one `run`.

pub mod audit;
pub mod cache;
pub mod check;
pub mod completion;
pub mod config;
pub mod doctor;
pub mod failback;
pub mod failover;
pub mod host;
pub mod job;
pub mod man;
pub mod notify;
pub mod peer;
pub mod reference;
pub mod replica;
pub mod repository;
pub mod restore_point;
pub mod session;
pub mod setup;
pub mod state;
pub mod status;
pub mod task;
pub mod throttle;
pub mod vm;

use clap::Args;

use crate::args::Noun;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;

/// Does what was asked.
pub async fn run(context: &Context, noun: Noun) -> Result<Exit, Failure> {
    match noun {
        Noun::Setup(command) => command.run(context).await,
        Noun::Doctor(command) => command.run(context).await,
        Noun::Status(command) => command.run(context).await,
        Noun::Peer(command) => command.run(context).await,
        Noun::Host(command) => command.run(context).await,
        Noun::Vm(command) => command.run(context).await,
        Noun::Job(command) => command.run(context).await,
        Noun::Session(command) => command.run(context).await,
        Noun::Repository(command) => command.run(context).await,
        Noun::Replica(command) => command.run(context).await,
        Noun::RestorePoint(command) => command.run(context).await,
        Noun::Failover(command) => command.run(context).await,
        Noun::Failback(command) => command.run(context).await,
        Noun::Task(command) => command.run(context).await,
        Noun::Throttle(command) => command.run(context).await,
        Noun::Notify(command) => command.run(context).await,
        Noun::Cache(command) => command.run(context).await,
        Noun::State(command) => command.run(context).await,
        Noun::Audit(command) => command.run(context).await,
        Noun::Check(command) => command.run(context).await,
        Noun::Config(command) => command.run(context).await,
        Noun::Completion(command) => command.run(context),
        Noun::Man(command) => command.run(),
        Noun::Reference(command) => command.run(),
    }
}

/// `--yes`
#[derive(Args, Clone, Copy, Debug)]
pub struct Yes {
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}
