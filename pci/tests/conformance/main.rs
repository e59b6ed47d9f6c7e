//! The conformance checklist of `docs/conformance.md`, one test or more for each of its ids.
//!
//! A test's name begins with the id that it proves. It enters where a guest does: configuration space, BARs, memory.

#[path = "../driver/mod.rs"]
mod driver;

mod bars;
mod chains;
mod checklist;
mod config;
mod console;
mod console_hosts;
mod console_messages;
mod console_ports;
mod entropy;
mod features;
mod function;
mod interrupts;
mod legacy;
mod msix;
mod registers;
mod ring_reset;
mod rings;
mod status;
mod suppression;
mod threads;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::Doorbell;

use driver::{Buf, Control, Driver, Machine, Probe, Ring, Way};

/// A machine whose slot 1 has a probe with two queues of eight entries.
fn probe(way: Way, doorbell: Doorbell) -> (Machine, Arc<Control>) {
    let (probe, control) = Probe::new(&[8, 8], doorbell);
    (Machine::with(probe, way), control)
}

/// The same with inline doorbells, for whom the host's side does not matter.
fn inline(way: Way) -> Machine {
    probe(way, Doorbell::Inline).0
}

/// Who serves a queue.
const DOORBELLS: [Doorbell; 2] = [Doorbell::Inline, Doorbell::Worker];

/// Sets its flag when it goes, so that a thread that runs until then ends even when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One request is done, and its interrupt is due.
fn request(driver: &Driver<'_>, ring: &Ring<'_>) {
    ring.post(&[Buf::room(driver.machine.ram(4, 1), 4)]);
    driver.kick(ring.queue);
    ring.wait();
    driver.settle();
}

/// Posts `text` with as much room for the answer and rings; the used buffer and its interrupt have to come.
fn echo(driver: &Driver<'_>, ring: &Ring<'_>, text: &[u8]) {
    let len = u32::try_from(text.len()).unwrap();
    let at = driver.machine.ram(text.len() as u64 * 2, 1);
    driver.machine.set_bytes(at, text);
    if ring.has_event_idx {
        ring.arm();
    }
    let head = ring.post(&[Buf::out(at, len), Buf::room(at + u64::from(len), len)]);
    driver.kick(ring.queue);
    assert_eq!(ring.wait(), (head, len));
    assert_eq!(driver.machine.bytes(at + u64::from(len), text.len()), text);
    driver.expect_queue(ring.queue);
}
