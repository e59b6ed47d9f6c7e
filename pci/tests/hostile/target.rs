//! The devices that are attacked, and how to see that one works.

use std::fs::File;
use std::io::{PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use devices::console::Console;
use devices::entropy::Entropy;
use devices::virtio::{Doorbell, VirtioDevice};

use crate::driver::{Buf, Driver, Probe, feature};

/// A device to attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Entropy,
    Console,
    Probe(Doorbell),
}

/// All of them.
pub const TARGETS: [Target; 4] =
    [Target::Entropy, Target::Console, Target::Probe(Doorbell::Inline), Target::Probe(Doorbell::Worker)];

/// The host's ends of a device's streams.
#[derive(Default)]
pub struct Ends {
    pub keyboard: Option<PipeWriter>,
    screen: Option<JoinHandle<()>>,
}

impl Ends {
    /// Types, if there is a keyboard and nobody would have to wait.
    pub fn type_in(&mut self, text: &[u8]) {
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.write_all(text).unwrap();
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // The other end goes with the machine, which was made after this and goes before it.
        drop(self.keyboard.take());
        if let Some(screen) = self.screen.take() {
            screen.join().unwrap();
        }
    }
}

impl Target {
    /// The device, and the host's ends.
    pub fn make(self) -> (Box<dyn VirtioDevice>, Ends) {
        match self {
            Self::Entropy => (Box::new(Entropy::new(File::open("/dev/urandom").unwrap())), Ends::default()),
            Self::Probe(doorbell) => (Box::new(Probe::new(&[16, 4], doorbell).0), Ends::default()),
            Self::Console => {
                let (typed, keyboard) = pipe().unwrap();
                let (mut screen, shown) = pipe().unwrap();
                let console = Console::open(Some(typed.as_fd()), Some(shown.as_fd())).unwrap();
                // Somebody reads all that is printed, until nobody can print any more.
                let reader = move || while screen.read(&mut [0; 4096]).unwrap() > 0 {};
                let ends = Ends { keyboard: Some(keyboard), screen: Some(std::thread::spawn(reader)) };
                (Box::new(console), ends)
            }
        }
    }

    /// The queue that a test attacks: one that answers.
    pub fn queue(self) -> u16 {
        if self == Self::Console { 1 } else { 0 }
    }

    /// A full reset, and the device serves as if nothing had been.
    pub fn check(self, driver: &Driver<'_>, at: u64) {
        for bits in [0, feature::EVENT_IDX | feature::INDIRECT] {
            let rings = driver.start(bits);
            let queue = self.queue();
            let ring = &rings[usize::from(queue)];
            driver.machine.set_bytes(at, &[0; 64]);
            let buf = if self == Self::Console { Buf::out(at, 64) } else { Buf::room(at, 64) };
            for _ in 0..3 {
                if bits == 0 {
                    ring.post(&[buf])
                } else {
                    ring.post_indirect(&[buf])
                };
                driver.kick(queue);
                let expected = if self == Self::Console { 0 } else { 64 };
                assert_eq!(ring.wait().1, expected, "{self:?} serves");
            }
            if self != Self::Console {
                assert_ne!(driver.machine.bytes(at, 64), [0; 64]);
            }
        }
        driver.reset();
    }
}
