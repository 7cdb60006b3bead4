//! Commands, options and links in README.md exist.

use std::path::{Path, PathBuf};

use super::licence::{Metadata, metadata};
use super::source::read;
use super::{Outcome, verdict};
use crate::Failure;
use crate::process::{output, program, root, target_folder};

/// Blocks of these languages are commands.
const SHELL: &[&str] = &["sh", "bash", "console", "shell"];

pub(super) fn run() -> Result<Outcome, Failure> {
    let text = read(&root().join("README.md"))?;
    let mut problems = Vec::new();
    let commands = commands(&text);
    let metadata = metadata()?;
    let pilotage = pilotage()?;
    for command in &commands {
        if let Some(problem) = check_command(command, &metadata, &pilotage)? {
            problems.push(format!("README.md: `{command}`: {problem}"));
        }
    }
    for link in links(&text) {
        if !root().join(&link).exists() {
            problems.push(format!("README.md: link to `{link}`, which does not exist"));
        }
    }
    Ok(verdict(problems, format!("({} commands)", commands.len())))
}

/// The program, as the tests run it.
fn pilotage() -> Result<PathBuf, Failure> {
    if !crate::test::build_all()? {
        return Err("pilotage does not build".into());
    }
    Ok(target_folder()?.join("debug/pilotage"))
}

/// Lines of shell blocks, without comments and prompts.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_shell = false;
    let mut in_block = false;
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_block = !in_block;
            in_shell = in_block && SHELL.contains(&language.trim());
            continue;
        }
        let command = line.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
        if in_shell && !command.is_empty() && !command.starts_with('#') {
            commands.push(command.trim_end_matches('&').trim().to_owned());
        }
    }
    commands
}

/// Relative targets of Markdown links.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| target.split('#').next().unwrap_or_default().to_owned())
        .collect()
}

/// What is wrong with a command, if we know the program and something is.
fn check_command(command: &str, metadata: &Metadata, pilotage: &Path) -> Result<Option<String>, Failure> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["cargo", "xtask", task, ..] => {
            Ok((!crate::task_names().iter().any(|name| name == task)).then(|| format!("no task `{task}`")))
        }
        ["cargo", "run", ..] => match run_target(&words) {
            Some((package, bin)) => Ok(missing_binary(metadata, package, bin)),
            None => check_pilotage(pilotage, arguments_after_dashes(&words)),
        },
        ["pilotage" | "./target/release/pilotage" | "target/release/pilotage", ..] => {
            check_pilotage(pilotage, &words[1..])
        }
        _ => Ok(None),
    }
}

fn run_target<'a>(words: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let value = |names: [&str; 2]| {
        words.iter().position(|word| names.contains(word)).and_then(|at| words.get(at + 1)).copied()
    };
    let package = value(["-p", "--package"])?;
    Some((package, value(["--bin", "--example"]).unwrap_or(package)))
}

fn missing_binary(metadata: &Metadata, package: &str, name: &str) -> Option<String> {
    let found = metadata.packages.iter().find(|known| known.name == package);
    let Some(found) = found else { return Some(format!("no package `{package}`")) };
    let has = found.targets.iter().any(|target| {
        target.name == name && target.kind.iter().any(|kind| kind == "bin" || kind == "example")
    });
    (!has).then(|| format!("package `{package}` has no program `{name}`"))
}

fn arguments_after_dashes<'a, 'b>(words: &'a [&'b str]) -> &'a [&'b str] {
    words.iter().position(|word| *word == "--").map_or(&[], |at| &words[at + 1..])
}

/// Asks the program itself whether it knows the command and its options.
fn check_pilotage(pilotage: &Path, words: &[&str]) -> Result<Option<String>, Failure> {
    let options = words.iter().filter(|word| word.starts_with("--")).map(|word| {
        word.split('=').next().unwrap_or(word).trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
    });
    // The command may stand behind global options and be of two words (`id show`): try what looks like one.
    let plain: Vec<&str> = words.iter().take_while(|word| !word.starts_with('-')).copied().collect();
    let Some(first) = plain.first() else { return Ok(Some("names no command".into())) };
    let one = help(pilotage, &[first])?;
    let Some(help_text) = one else { return Ok(Some(format!("no command `{first}`"))) };
    let deeper = match plain.get(1) {
        Some(second) => help(pilotage, &[first, second])?,
        None => None,
    };
    let known = deeper.map_or(help_text.clone(), |text| text + &help_text);
    for option in options {
        if !known.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == option) {
            return Ok(Some(format!("`{first}` has no option `{option}`")));
        }
    }
    Ok(None)
}

/// The help text of a command; `None` if there is no such command.
fn help(pilotage: &Path, words: &[&str]) -> Result<Option<String>, Failure> {
    Ok(output(program(pilotage).arg("help").args(words)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_from_shell_blocks_only() {
        let text =
            "```sh\ncargo xtask test   # all\n# comment\npilotage hub &\n```\n```rust\nlet x = 1;\n```\n";
        assert_eq!(commands(text), ["cargo xtask test", "pilotage hub"]);
    }

    #[test]
    fn relative_links_are_found() {
        let text = "[a](spec/README.md#x) [b](https://example.invalid/) [c](#here)";
        assert_eq!(links(text), ["spec/README.md"]);
    }

    #[test]
    fn the_program_of_a_run_command_is_found() {
        let words: Vec<&str> =
            "cargo run --release -p pilotage-benches --bin transfer -- --size 1GiB".split(' ').collect();
        assert_eq!(run_target(&words), Some(("pilotage-benches", "transfer")));
        assert_eq!(arguments_after_dashes(&words), ["--size", "1GiB"]);
    }
}
