//! Runs one target on the files that are named: `cargo run --example one -- pair artifacts/pair/crash-…`.

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some(target) = pilotage_fuzz::TARGETS.iter().find(|t| t.name == name) else {
        let names: Vec<&str> = pilotage_fuzz::TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: one TARGET FILE...\ntargets: {}", names.join(" "));
        std::process::exit(2);
    };
    for file in arguments {
        println!("{file}");
        (target.run)(&std::fs::read(file)?);
    }
    Ok(())
}
