//! The laboratory as a whole.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tun_rs::SyncDevice;

use crate::link::{Counters, Link, LinkConfig};
use crate::namespace::{Namespace, sweep};
use crate::pump::{self, Shared};
use crate::{LabError, device};

/// Most namespaces of one lab.
const MAX_NAMESPACES: usize = 16;

/// What does not belong to one link.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Largest IP packet that the kernel sends through a device; it knows about this one.
    pub device_mtu: u16,
    /// Seed of all that is random; each link gets its own from it.
    pub seed: u64,
    /// Real-time priority (1 to 99) of the threads; without permission they run as others do.
    pub priority: Option<u8>,
}

impl Default for LabConfig {
    /// Ethernet's MTU, seed 1, priority 50.
    fn default() -> Self {
        Self { device_mtu: 1_500, seed: 1, priority: Some(50) }
    }
}

/// Namespaces and the links between them. All of it goes away when this is dropped.
#[derive(Debug)]
pub struct Lab {
    namespaces: Vec<Namespace>,
    links: Vec<Arc<Shared>>,
    threads: Vec<JoinHandle<()>>,
    real_time: bool,
}

impl Lab {
    /// Says why there can be no lab here.
    ///
    /// # Errors
    /// [`LabError::Unavailable`].
    pub fn available() -> Result<(), LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::Unavailable("namespaces and TUN devices need root".into()));
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err(LabError::Unavailable("/dev/net/tun is missing".into()));
        }
        if device::ip(&["netns", "list"]).is_err() {
            return Err(LabError::Unavailable("`ip netns` (iproute2) does not work".into()));
        }
        Ok(())
    }

    /// One namespace per link: `links[i]` is the way out of namespace `i`. Stale namespaces of dead processes are
    /// removed first.
    ///
    /// # Errors
    /// [`LabError::Unavailable`] without root or TUN; [`LabError::Failed`] with the step that failed.
    pub fn new(links: &[LinkConfig], config: &LabConfig) -> Result<Self, LabError> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        Self::available()?;
        if !(2..=MAX_NAMESPACES).contains(&links.len()) {
            return Err(LabError::Setting(format!("a lab has 2 to {MAX_NAMESPACES} namespaces")));
        }
        sweep()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let mut lab =
            Self { namespaces: Vec::new(), links: Vec::new(), threads: Vec::new(), real_time: true };
        let mut devices: Vec<SyncDevice> = Vec::new();
        for (index, link) in links.iter().enumerate() {
            // Interface names have at most 15 characters; process numbers at most 7.
            let made =
                device::create(&format!("pl{}x{number}x{index}", std::process::id()), config.device_mtu)?;
            lab.namespaces.push(Namespace::make(number, index as u8, &made, config.device_mtu)?);
            let link = Link::new(link.clone(), config.seed.wrapping_add(index as u64)).with_lead(pump::LEAD);
            lab.links.push(Arc::new(Shared::new(link)?));
            devices.push(made);
        }
        let devices: Arc<[SyncDevice]> = devices.into();
        for (index, shared) in lab.links.iter().enumerate() {
            let (thread, real_time) = pump::start(index, devices.clone(), shared.clone(), config.priority)?;
            lab.threads.push(thread);
            lab.real_time &= real_time;
        }
        Ok(lab)
    }

    /// Two namespaces with the same link both ways.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn pair(link: &LinkConfig, config: &LabConfig) -> Result<Self, LabError> {
        Self::new(&[link.clone(), link.clone()], config)
    }

    /// One of the namespaces.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn namespace(&self, index: usize) -> &Namespace {
        &self.namespaces[index]
    }

    /// Whether all threads have real-time priority. Without it a busy machine delivers late.
    #[must_use]
    pub fn is_real_time(&self) -> bool {
        self.real_time
    }

    /// What the way out of a namespace is set to.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn link(&self, index: usize) -> LinkConfig {
        self.links[index].link().config().clone()
    }

    /// Changes the way out of a namespace, now.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn set_link(&self, index: usize, config: LinkConfig) {
        self.links[index].link().reconfigure(Instant::now(), config);
        self.links[index].wake();
    }

    /// What the way out of a namespace did so far.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn counters(&self, index: usize) -> Counters {
        let counters = self.links[index].link().counters();
        Counters { stray: self.links[index].stray(), overrun: self.namespaces[index].overrun(), ..counters }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.links.iter().for_each(|link| link.stop());
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}
