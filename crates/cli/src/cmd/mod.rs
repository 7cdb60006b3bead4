//! The commands, one file each.

pub(crate) mod bench;
mod completions;
mod config;
pub(crate) mod datagram;
pub(crate) mod doctor;
mod events;
mod find;
mod gateway;
mod heads;
mod id;
mod keyring;
mod local_socket;
mod mainline;
mod message;
mod names;
mod network;
pub(crate) mod ping;
mod pipe;
mod record;
mod recv;
mod replica;
pub(crate) mod send;
mod skills;
mod status;
mod task;
pub(crate) mod trace;
mod trust;
mod up;
mod watch;

use std::path::Path;

pub(crate) use id::read_identity;

use crate::args::Command;
use crate::config::Settings;
use crate::error::CliError;
use crate::output::Output;
use crate::stop::Stop;
use crate::{decode, demo, hub};

/// What every command gets.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) output: Output,
    pub(crate) stop: Stop,
}

/// Runs one command to its end, and ends what it has started however it ends: a node is closed, so
/// that its peers hear of it.
pub(crate) fn run(context: &Context, command: Command) -> Result<(), CliError> {
    let result = dispatch(context, command);
    context.stop.request();
    result
}

fn dispatch(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Hub(args) => hub::run(context, &args),
        Command::Beacon(args) => hub::beacon::run(context, &args),
        Command::Up(args) => up::run(context, &args),
        Command::Id(args) => id::run(context, &args),
        Command::Status => status::run(context),
        Command::Trust(args) => trust::run(context, &args.action),
        Command::Trace(args) => trace::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Ping(args) => ping::run(context, &args),
        Command::Send(args) => send::run(context, &args),
        Command::Recv(args) => recv::run(context, &args),
        Command::Listen(args) => pipe::listen(context, &args),
        Command::Connect(args) => pipe::connect(context, &args),
        Command::Bench(args) => bench::run(context, &args),
        Command::Message(args) => message::run(context, &args),
        Command::Datagram(args) => datagram::run(context, &args),
        Command::Inbox(args) => message::inbox(context, &args),
        Command::Subscribe(args) => events::subscribe(context, &args),
        Command::Publish(args) => events::publish(context, &args),
        Command::Task(args) => task::run(context, &args.action),
        Command::Resolve(args) => names::resolve(context, &args),
        Command::Record(args) => record::run(context, &args),
        Command::Watch(args) => watch::run(context, &args),
        Command::Announce(args) => names::announce(context, &args),
        Command::Find(args) => find::find(context, &args),
        Command::Call(args) => find::call(context, &args),
        Command::Network(args) => network::run(context, &args),
        Command::Decode(args) => decode::run(context, &args),
        Command::Demo(args) => demo::run(context, &args),
        Command::DemoSender(args) => demo::sender(context, &args),
        Command::Forward(args) => gateway::forward(context, &args),
        Command::Serve(args) => gateway::serve(context, &args),
        Command::Socks5(args) => gateway::socks5(context, &args),
        Command::Gateway(args) => gateway::aliases(context, &args),
        Command::Config => config::run(context),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Makes a directory (and its parents) that only its owner can enter.
pub(crate) fn create_private_dir(dir: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// For `--exit-with-stdin`: asks the command to end when standard input ends, as it does when the
/// parent process dies, however it dies.
pub(crate) fn stop_with_stdin(context: &Context) {
    let stop = context.stop.clone();
    let watch = move || {
        // Whatever comes is of no interest, only the end is.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.request();
        // The command ends by itself now; if it cannot, the parent must still not leave orphans.
        std::thread::sleep(crate::GRACE);
        std::process::exit(i32::from(crate::error::Exit::Interrupted as u8));
    };
    if let Err(error) = std::thread::Builder::new().name("stdin-watch".into()).spawn(watch) {
        tracing::warn!(%error, "cannot watch standard input");
    }
}
