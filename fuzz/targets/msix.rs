//! MSI-X against a model of four lines: an event is sent at once or pends, and what pends is sent as soon as it may.
#![no_main]

use devices::virtio::Doorbell;
use fuzz::driver::function::{BUS_MASTER, IO, MEMORY};
use fuzz::driver::{Driver, Machine, NO_VECTOR, Probe, Reg};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use pci::virtio::Faces;

/// What PCI says of three vectors.
#[derive(Default)]
struct Model {
    is_enabled: bool,
    is_masked: bool,
    may_send: bool,
    masks: [bool; 3],
    pending: [bool; 3],
    sent: u64,
}

impl Model {
    fn fire(&mut self, vector: u64) {
        // Without MSI-X the event goes to the pin.
        if let (true, Some(pending)) =
            (self.is_enabled, self.pending.get_mut(usize::try_from(vector).unwrap()))
        {
            *pending = true;
        }
        self.settle();
    }

    fn settle(&mut self) {
        for (pending, mask) in self.pending.iter_mut().zip(self.masks) {
            if *pending && !mask && self.is_enabled && !self.is_masked && self.may_send {
                *pending = false;
                self.sent += 1;
            }
        }
    }

    fn check(&self, machine: &Machine, driver: &Driver<'_>) {
        assert_eq!(machine.host.sent(), self.sent);
        for (vector, pending) in (0..).zip(self.pending) {
            assert_eq!(driver.function.is_pending(vector), pending, "vector {vector}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let machine = guest::machine(Probe::new(&[8, 4], Doorbell::Inline).0, way);
    let driver = Driver::find(&machine, 1, way);
    driver.function.set_msix(true, false);
    (0..3).for_each(|vector| driver.function.set_vector(vector, 0xfee0_0000, 0x40, false));
    let rings = driver.start(0);
    driver.unmap(2);
    let needs_master = way.faces == Faces::Modern;
    let mut mapped = [NO_VECTOR; 2];
    let mut model = Model { is_enabled: true, may_send: true, ..Model::default() };
    model.sent = machine.host.sent();
    while !input.is_empty() {
        match input.below(8) {
            0 | 1 => {
                let queue = input.below(2);
                let ring = &rings[usize::from(queue)];
                ring.set_descriptor(0, fuzz::driver::Buf::room(0x10_0000, 4), 2, 0);
                ring.offer(0);
                driver.kick(queue.into());
                // Without bus mastering a modern function touches no ring either.
                if model.may_send {
                    model.fire(mapped[usize::from(queue)]);
                } else {
                    let index = ring.used_index();
                    let command = IO | MEMORY | BUS_MASTER;
                    driver.function.set_command(command);
                    model.may_send = true;
                    model.settle();
                    assert_ne!(ring.used_index(), index);
                    model.fire(mapped[usize::from(queue)]);
                }
            }
            2 => {
                let vector = input.below(3);
                let is_masked = input.byte() & 1 != 0;
                driver.function.mask(vector.into(), is_masked);
                model.masks[usize::from(vector)] = is_masked;
            }
            3 => {
                model.is_enabled = input.byte() & 3 != 0;
                model.is_masked = input.byte() & 1 != 0;
                driver.function.set_msix(model.is_enabled, model.is_masked);
            }
            4 => {
                let master = if input.byte() & 1 != 0 { BUS_MASTER } else { 0 };
                driver.function.set_command(IO | MEMORY | master);
                model.may_send = !needs_master || master != 0;
            }
            5 => {
                let (queue, vector) = (input.below(2), u64::from(input.below(5)));
                let vector = if vector == 4 { input.word() } else { vector };
                // In the legacy interface there are no vectors while MSI-X is off.
                if way.is_modern() || model.is_enabled {
                    driver.set(Reg::QueueSelect, queue.into());
                    driver.set(Reg::QueueVector, vector);
                    mapped[usize::from(queue)] = if vector < 3 { vector } else { NO_VECTOR };
                    assert_eq!(driver.get(Reg::QueueVector), mapped[usize::from(queue)]);
                }
            }
            6 => {
                // The message, the pending bits, and what lies behind the table: all but the masks.
                let at = match input.below(3) {
                    0 => {
                        driver.function.table()
                            + u64::from(input.below(3)) * 16
                            + u64::from(input.below(3)) * 4
                    }
                    1 => driver.function.pending_bits() + u64::from(input.below(32)),
                    _ => driver.function.table() + 48 + u64::from(input.byte()),
                };
                machine.store(at, 4, input.value(4));
            }
            _ => drop(driver.isr()),
        }
        model.settle();
        model.check(&machine, &driver);
    }
});
