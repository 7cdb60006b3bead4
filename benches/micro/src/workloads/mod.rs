//! Small pieces of work, by name. One list serves criterion, which times them, and valgrind, which counts their
//! instructions.

mod codec;
mod crypto;
mod receive;
mod send;
mod stack;

/// One run of the work.
pub type Run = Box<dyn FnMut()>;

/// A piece of work.
pub struct Workload {
    /// `group/what/size`.
    pub name: String,
    /// What one run is so many of: frames, segments, packets.
    pub operations: u64,
    /// Payload bytes of one operation; 0 where size does not matter.
    pub bytes: u64,
    /// Sets it up.
    pub make: Box<dyn Fn() -> Run>,
}

/// All workloads.
#[derive(Default)]
pub struct List(Vec<Workload>);

impl List {
    fn add<F: FnMut() + 'static>(
        &mut self,
        name: impl Into<String>,
        operations: u64,
        bytes: u64,
        make: impl Fn() -> F + 'static,
    ) {
        let make = Box::new(move || Box::new(make()) as Run);
        self.0.push(Workload { name: name.into(), operations, bytes, make });
    }
}

/// Every workload there is, in the order of the tables.
pub fn all() -> Vec<Workload> {
    let mut list = List::default();
    codec::add(&mut list);
    crypto::add(&mut list);
    receive::add(&mut list);
    send::add(&mut list);
    stack::add(&mut list);
    list.0
}

/// Payloads of a small request, a full 1,452-byte datagram, the draft's segment and a loopback-sized datagram.
const PAYLOADS: [usize; 4] = [64, 1_382, 4_096, 60 << 10];

/// Operations of one run where one takes some nanoseconds only.
const MANY: u64 = 64;

#[cfg(test)]
mod tests {
    #[test]
    fn every_workload_runs_and_has_a_name_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        for workload in super::all() {
            let mut run = (workload.make)();
            run();
            run();
            assert!(workload.operations > 0);
            assert!(names.insert(workload.name.clone()), "{} twice", workload.name);
        }
        assert!(names.len() > 50, "{}", names.len());
    }
}
