//! Times every workload with criterion, or runs one so often for a tool that counts instructions.
//!
//! * `cargo bench -p pilotage-micro -- [criterion's options] [filter]`
//! * `micro --list`: a line of name, operations of a run and bytes of an operation for each, separated by tabs
//! * `micro --run NAME TIMES`: sets the workload up and runs it, without a clock

use std::process::ExitCode;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use pilotage_micro::workloads::{self, Workload};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--list", "--bench"] | ["--list"] => list(),
        ["--run", name, times] => return run(name, times),
        _ => time(),
    }
    ExitCode::SUCCESS
}

fn list() {
    for Workload { name, operations, bytes, .. } in workloads::all() {
        println!("{name}\t{operations}\t{bytes}");
    }
}

fn run(name: &str, times: &str) -> ExitCode {
    let workload = workloads::all().into_iter().find(|w| w.name == name);
    let (Some(workload), Ok(times)) = (workload, times.parse::<u64>()) else {
        eprintln!("usage: micro --run NAME TIMES; the names: micro --list");
        return ExitCode::FAILURE;
    };
    let mut run = (workload.make)();
    for _ in 0..times {
        run();
    }
    ExitCode::SUCCESS
}

fn time() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .configure_from_args();
    for Workload { name, operations, bytes, make } in workloads::all() {
        let (group, rest) = name.split_once('/').unwrap_or(("other", &name));
        let mut group = criterion.benchmark_group(group);
        group.throughput(if bytes > 0 {
            Throughput::Bytes(bytes * operations)
        } else {
            Throughput::Elements(operations)
        });
        group.bench_function(rest, |b| {
            b.iter(make());
        });
        group.finish();
    }
    criterion.final_summary();
}
