//! Two namespaces, a bad link between them, a ping through it, and a change while it runs.
//!
//! `sudo -E cargo run -p pilotage-lab --example two_rooms`

use std::time::Duration;

use pilotage_lab::{Lab, LabConfig, LabError, LinkConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let link = LinkConfig::new(20_000_000, Duration::from_millis(25)).losing(0.05);
    let lab = match Lab::pair(&link, &LabConfig::default()) {
        Err(error @ LabError::Unavailable(_)) => {
            eprintln!("SKIPPED: {error}");
            return Ok(());
        }
        other => other?,
    };
    for change in ["delay=25ms", "delay=5ms,loss=0%"] {
        let mut link = lab.link(0);
        link.set_all(change)?;
        lab.set_link(0, link);
        println!("way out of the first namespace: {}", lab.link(0));
        let ping = ["-c", "20", "-i", "0.05", "-q", "10.77.0.2"];
        if lab.namespace(0).command("ping").args(ping).status().is_err() {
            println!("(no `ping` here)");
        }
        println!("{:?}", lab.counters(0));
    }
    Ok(())
}
