//! `pilotage task`: what others ask this node to do, and what it asked others (port 1003).
//!
//! While `pilotage up` runs, it has the tasks: the commands go to its control socket. Otherwise a node runs for as long as
//! the command does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilotage::{Node, NodeId, Peer};
use pilotage_services::clock::rfc3339;
use pilotage_services::file::check_name;
use pilotage_services::server::TaskService;
use pilotage_services::task::{
    MAX_FILE, OperateError, Output, Scores, Side, Store, StoreError, Task, TaskId, Tasks,
};
use serde_json::{Value, json};

use super::Context;
use super::message::{printable, read_whole};
use crate::args::{NodeArgs, TaskAction, UpArgs};
use crate::control;
use crate::error::CliError;
use crate::node;

/// How long a running node may take: it may have to connect, and to wait for a reply.
const ANSWER: Duration = Duration::from_secs(90);

/// Where the tasks of a state directory are.
pub(crate) fn dir(context: &Context) -> PathBuf {
    context.settings.state.join("tasks")
}

pub(crate) fn run(context: &Context, action: &TaskAction) -> Result<(), CliError> {
    let (node_args, request) = match action {
        TaskAction::List { received, submitted } => return list(context, *received, *submitted),
        TaskAction::Results { id, text: None, file: None, .. } => return show(context, id),
        TaskAction::Submit { node, peer, description } => {
            (node, json!({ "do": "submit", "peer": peer.to_string(), "description": description }))
        }
        TaskAction::Accept(choice) => {
            (&choice.node, json!({ "do": "accept", "id": choice.id, "why": choice.why }))
        }
        TaskAction::Decline(choice) => {
            (&choice.node, json!({ "do": "decline", "id": choice.id, "why": choice.why }))
        }
        TaskAction::Cancel(choice) => {
            (&choice.node, json!({ "do": "cancel", "id": choice.id, "why": choice.why }))
        }
        TaskAction::Execute { node, id } => (node, json!({ "do": "execute", "id": id })),
        TaskAction::Results { node, id, text, file } => {
            // The running node may have another working directory.
            let file = file
                .as_ref()
                .map(std::path::absolute)
                .transpose()
                .map_err(|error| CliError::failure("open file", error, "name it by its whole path"))?;
            (node, json!({ "do": "results", "id": id, "text": text, "file": file }))
        }
    };
    let reply = perform(context, node_args, request)?;
    if let Some(error) = reply["error"].as_str() {
        let next = reply["next"].as_str().unwrap_or("see `pilotage task list`");
        return Err(CliError::failure("task", error, next));
    }
    let task: Task = serde_json::from_value(reply["task"].clone())
        .map_err(|error| CliError::failure("task", error, "use the same version for `up` and `task`"))?;
    context.output.result(text(&task), &json(&task, None));
    Ok(())
}

/// By the running node, or by one for this command alone.
fn perform(context: &Context, args: &NodeArgs, mut request: Value) -> Result<Value, CliError> {
    request["cmd"] = "task".into();
    if !args.ephemeral {
        match control::request_with(&context.settings.state, &request, ANSWER) {
            Ok(reply) => return Ok(reply),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => {
                return Err(CliError::failure(
                    "task",
                    error,
                    "see what the running node says, then try again",
                ));
            }
        }
    }
    if let Ok(peer) = request["peer"].as_str().unwrap_or_default().parse() {
        node::check_peer(context, args, &peer)?;
    }
    let store = open(&dir(context))?;
    let node = node::start(context, args)?;
    let tasks = Tasks::new(store, node.clone());
    let reply = answer(&tasks, &request);
    if tasks.tell() > 0 {
        context.output.note("note: the other side was not reached; `pilotage up` will tell it");
    }
    node.close();
    Ok(reply)
}

/// Opens the tasks of a state directory.
pub(crate) fn open(dir: &Path) -> Result<Arc<Store>, CliError> {
    let opened = super::create_private_dir(dir).and_then(|()| Store::open(Some(dir)));
    opened.map(Arc::new).map_err(|error| {
        CliError::failure(
            "tasks",
            format!("{}: {error}", dir.display()),
            "check its permissions and the disk",
        )
    })
}

/// Does what a request of the control socket asks for.
pub(crate) fn answer(tasks: &Tasks, request: &Value) -> Value {
    match operate(tasks, request) {
        Ok(task) => json!({ "task": task }),
        Err((error, next)) => json!({ "error": error, "next": next }),
    }
}

type Failure = (String, &'static str);

fn operate(tasks: &Tasks, request: &Value) -> Result<Task, Failure> {
    let word = |key: &str| request[key].as_str().unwrap_or_default();
    let id = || word("id").parse::<TaskId>().map_err(|error| (error.to_string(), LIST));
    let stored = |result: Result<Task, StoreError>| result.map_err(|error| (error.to_string(), LIST));
    match word("do") {
        "submit" => {
            let peer: Peer =
                word("peer").parse().map_err(|error| (format!("{error}"), "name the peer as for ping"))?;
            tasks.submit(&peer, word("description")).map_err(operate_failure)
        }
        "accept" => stored(tasks.accept(&id()?, word("why"))),
        "decline" => stored(tasks.decline(&id()?, word("why"))),
        "cancel" => stored(tasks.cancel(&id()?, word("why"))),
        "execute" if request["id"].is_null() => stored(tasks.execute(None)),
        "execute" => stored(tasks.execute(Some(&id()?))),
        "results" => {
            let output = match request["file"].as_str() {
                Some(path) => file_output(Path::new(path))?,
                None => Output::Text(word("text").to_owned()),
            };
            tasks.results(&id()?, output).map_err(operate_failure)
        }
        other => Err((format!("unknown task command {other:?}"), "use the same version for `up` and `task`")),
    }
}

const LIST: &str = "see `pilotage task list`";

fn file_output(path: &Path) -> Result<Output, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    check_name(&name).map_err(|error| (error.to_string(), "send the file under another name"))?;
    let data = read_whole(path, MAX_FILE as u64).map_err(|error| (error.cause, "see the cause"))?;
    Ok(Output::File { name, data })
}

fn operate_failure(error: OperateError) -> Failure {
    let next = match &error {
        OperateError::Connect(_) => "check that the peer is running and reachable (pilotage ping)",
        OperateError::TooLong(_) => "texts have 64 KiB at most, files 12 MiB",
        OperateError::Store(_) => LIST,
        _ => "see what the peer says",
    };
    (error.to_string(), next)
}

fn list(context: &Context, received: bool, submitted: bool) -> Result<(), CliError> {
    for task in peek(context)? {
        let wanted = match task.side {
            Side::Received => !submitted,
            Side::Submitted => !received,
        };
        if wanted {
            context.output.result(text(&task), &json(&task, None));
        }
    }
    Ok(())
}

fn peek(context: &Context) -> Result<Vec<Task>, CliError> {
    let dir = dir(context);
    Store::peek(&dir).map_err(|error| {
        CliError::failure("tasks", format!("{}: {error}", dir.display()), "check its permissions")
    })
}

/// The results of a task, as they are stored.
fn show(context: &Context, id: &TaskId) -> Result<(), CliError> {
    let task = peek(context)?.into_iter().find(|task| task.id == *id && task.result.is_some());
    let task =
        task.ok_or_else(|| CliError::failure("task", format!("no results of {id} are known here"), LIST))?;
    let result = task.result.as_ref();
    let stored = dir(context).join(format!("{}-{}.result", task.side, task.id));
    let path = stored.is_file().then(|| stored.display().to_string());
    let shown = match (result.and_then(|result| result.text.clone()), &path) {
        (Some(text), _) => {
            text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
        }
        (None, Some(path)) => path.clone(),
        (None, None) => String::new(),
    };
    context.output.result(shown, &json(&task, path.as_deref()));
    Ok(())
}

pub(crate) fn text(task: &Task) -> String {
    let mut text =
        format!("task {}  {}  {}  {}  {}", task.id, task.side, task.peer, task.state, rfc3339(task.created));
    text.push_str(&format!("\n    {}", printable(&task.description)));
    if !task.justification.is_empty() {
        text.push_str(&format!("\n    because: {}", printable(&task.justification)));
    }
    if let Some(result) = &task.result {
        let name = result.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
        text.push_str(&format!("\n    results{name}: {} bytes", result.bytes));
    }
    text
}

pub(crate) fn json(task: &Task, path: Option<&str>) -> Value {
    json!({
        "event": "task",
        "id": task.id,
        "side": task.side,
        "peer": task.peer,
        "description": task.description,
        "state": task.state,
        "justification": task.justification,
        "created": rfc3339(task.created),
        "result": task.result,
        "result_path": path,
        "told": !task.untold,
    })
}

/// The task service of `up`: on disk, unless the node is a throwaway.
pub(crate) fn service(context: &Context, args: &UpArgs, node: &Node) -> Result<TaskService, CliError> {
    let store = match args.node.ephemeral {
        true => Store::open(None)
            .map(Arc::new)
            .map_err(|error| CliError::failure("tasks", error, "see the cause"))?,
        false => open(&dir(context))?,
    };
    // Without a registry nobody has a score.
    let asks = context.settings.has_hub() && !args.ignore_polo;
    Ok(TaskService { store, scores: asks.then(|| scores(node)) })
}

/// Asks the registry.
fn scores(node: &Node) -> Scores {
    let node = node.clone();
    Arc::new(move |of: NodeId| {
        let request = json!({ "type": "get_polo_score", "node_id": of.0 });
        let reply = node.registry_call(request, None).map_err(|error| error.to_string())?;
        reply["polo_score"].as_i64().ok_or_else(|| "the registry named no score".into())
    })
}

/// As the command of a control socket, where `up` serves no tasks.
pub(crate) fn not_served() -> Value {
    json!({ "error": "the running node serves no tasks", "next": "start it without --without tasks" })
}
