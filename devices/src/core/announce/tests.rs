//! Decisions that are put off, and polling, with a clock of the test's own: a look of the device's thread is a call.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::chain::Memory;
use crate::core::{Face, status};
use crate::interrupt::Interrupt;
use crate::queue::{Areas, Fault, Queues};
use crate::virtio::{Desc, Doorbell, Next, QueueDesc, VirtioDevice};

/// A device of two late queues that takes all it is given.
struct Sink;

impl VirtioDevice for Sink {
    fn desc(&self) -> Desc {
        let queue = QueueDesc { size: SIZE, doorbell: Doorbell::Inline, timing: Timing::Late };
        Desc {
            name: "sink",
            device_type: 3,
            transitional_id: 0x1003,
            class: 0,
            features: 0,
            queues: vec![queue; 2],
            config_len: 0,
        }
    }

    fn service(&mut self, wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        if let Wake::Queue(queue) = wake {
            while let Some(chain) = queues.pop(queue)? {
                queues.complete(chain)?;
            }
        }
        Ok(Next::default())
    }
}

#[derive(Default)]
struct Signals(Mutex<Vec<Cause>>);

impl Interrupt for Signals {
    fn signal(&self, cause: Cause) -> io::Result<()> {
        self.0.lock().unwrap().push(cause);
        Ok(())
    }
}

const SIZE: u16 = 8;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;

/// A driver of it.
struct Driver {
    core: Core,
    memory: Arc<Memory>,
    signals: Arc<Signals>,
    posted: [u16; 2],
}

impl Driver {
    fn start() -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        let signals = Arc::<Signals>::default();
        let interrupt: Arc<dyn Interrupt> = Arc::<Signals>::clone(&signals);
        let core = Core::new(Box::new(Sink), Arc::clone(&memory), interrupt).unwrap();
        let mut this = Self { core, memory, signals, posted: [0; 2] };
        this.negotiate();
        this
    }

    fn negotiate(&mut self) {
        let features = feature::VERSION_1 | feature::EVENT_IDX;
        for select in [0, 1] {
            let word = u32::try_from(features >> (32 * select) & u128::from(u32::MAX)).unwrap();
            self.core.set_driver_features(select, word);
        }
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        let _ = self.core.set_status(bits, Face::Modern);
        (0..2).for_each(|queue| self.enable(queue));
        let _ = self.core.set_status(bits | status::DRIVER_OK, Face::Modern);
    }

    fn enable(&mut self, queue: u16) {
        let desc = base(queue);
        self.memory.write_slice(&[0; 0x300], GuestAddress(desc)).unwrap();
        // Its only descriptor has one byte for the device.
        self.memory.write_obj(1_u32, GuestAddress(desc + 8)).unwrap();
        self.core.set_queue_areas(queue, Areas { desc, driver: desc + AVAILABLE, device: desc + USED });
        self.core.enable_queue(queue, Face::Modern);
        self.posted[usize::from(queue)] = 0;
    }

    /// Makes a buffer available, and rings if the device asks for that. Says whether it did.
    fn post(&mut self, queue: u16) -> bool {
        let old = self.posted[usize::from(queue)];
        self.posted[usize::from(queue)] = old + 1;
        self.memory.write_obj(old + 1, GuestAddress(base(queue) + AVAILABLE + 2)).unwrap();
        let event = base(queue) + USED + 4 + 8 * u64::from(SIZE);
        let wants_bell = self.memory.read_obj::<u16>(GuestAddress(event)).unwrap() == old;
        if wants_bell {
            self.core.serve(Wake::Queue(queue));
        }
        wants_bell
    }

    /// Takes what was used, and asks for an interrupt for the next.
    fn take(&self, queue: u16) {
        let event = base(queue) + AVAILABLE + 4 + 2 * u64::from(SIZE);
        self.memory.write_obj(self.used(queue), GuestAddress(event)).unwrap();
    }

    fn used(&self, queue: u16) -> u16 {
        self.memory.read_obj(GuestAddress(base(queue) + USED + 2)).unwrap()
    }

    fn signals(&self) -> Vec<Cause> {
        std::mem::take(&mut self.signals.0.lock().unwrap())
    }

    /// Prints until the device's thread wants to look by itself, and has it begin.
    fn begin_polling(&mut self) {
        for _ in 0..BURST {
            assert!(self.post(0));
            self.take(0);
        }
        assert_eq!(self.core.decide_late(true), Late::Poll);
        let mut places = Vec::new();
        self.core.poll(&mut places);
        assert_eq!(places.len(), 1);
        assert!(self.post(0), "what was asked for before");
        self.take(0);
    }
}

fn base(queue: u16) -> u64 {
    0x1000 + 0x1000 * u64::from(queue)
}

#[test]
fn a_queue_that_is_polled_does_not_put_off_the_decision_about_another() {
    let mut driver = Driver::start();
    driver.begin_polling();
    assert!(driver.post(1));
    for _ in 0..2 {
        assert!(!driver.post(0));
        driver.core.poll(&mut Vec::new());
        driver.take(0);
        assert_eq!(driver.core.decide_late(true), Late::Poll, "polling goes on");
    }
    assert_eq!(driver.signals(), [Cause::Queue(1)]);
}

#[test]
fn a_driver_that_waits_is_interrupted_when_polling_is_over() {
    let mut driver = Driver::start();
    driver.begin_polling();
    assert!(!driver.post(0));
    driver.core.poll(&mut Vec::new());
    assert_eq!(driver.used(0), BURST + 2);
    driver.core.stop_polling();
    assert!(driver.core.has_late_timer, "the thread comes back");
    assert_eq!(driver.core.decide_late(true), Late::Done);
    assert_eq!(driver.signals(), [Cause::Queue(0)]);
    assert!(driver.post(0), "the doorbell is asked for again");
}

/// Whatever happens to a queue that is polled, its driver's next buffers are seen.
#[test]
fn polling_ends_with_a_doorbell_whatever_happens_meanwhile() {
    type Happening = (&'static str, fn(&mut Driver));
    let happenings: [Happening; 5] = [
        ("nothing", |_| ()),
        ("reset", |driver| {
            let _ = driver.core.set_status(0, Face::Modern);
            driver.negotiate();
        }),
        ("queue reset", |driver| {
            let _ = driver.core.reset_queue(0);
            driver.enable(0);
        }),
        ("no bus master for a while", |driver| {
            driver.core.set_memory_access(false);
            assert!(!driver.post(0));
            (0..2).for_each(|_| driver.core.poll(&mut Vec::new()));
            assert!(driver.core.polled(0).is_none(), "nothing is found there");
            driver.core.set_memory_access(true);
            driver.core.serve_all();
        }),
        ("a fault of the other queue", |driver| {
            driver.memory.write_obj(100_u16, GuestAddress(base(1) + AVAILABLE + 2)).unwrap();
            driver.core.serve(Wake::Queue(1));
            assert!(driver.core.is_broken());
            driver.core.poll(&mut Vec::new());
            let _ = driver.core.set_status(0, Face::Modern);
            driver.negotiate();
        }),
    ];
    for (what, happen) in happenings {
        let mut driver = Driver::start();
        driver.begin_polling();
        happen(&mut driver);
        driver.core.poll(&mut Vec::new());
        driver.core.stop_polling();
        driver.take(0);
        driver.signals();
        let used = driver.used(0);
        assert!(driver.post(0), "{what}: the driver is to ring");
        assert_eq!(driver.used(0), used + 1, "{what}");
        // It waits, and is told.
        while driver.core.decide_late(false) != Late::Done {}
        assert_eq!(driver.signals(), [Cause::Queue(0)], "{what}");
    }
}
