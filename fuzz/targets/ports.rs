//! A console of three ports behind rings of the fuzzer's making: control messages of all kinds, on any queue.
#![no_main]

use std::cell::Cell;
use std::sync::Arc;

use devices::location::Placement;
use devices::options::Options;
use devices::terminal::NoTerminal;
use devices::vdev::Reason;
use devices::virtio::VirtioDevice;
use devices::{Built, Context};
use fuzz::driver::{Buf, Driver, Machine, Plug, Reg};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// Nobody at either end of any port.
const PORTS: &str = "virtio-console,hostdev=</dev/null,hostdev=>/dev/null,console=second,hostdev=</dev/null,\
                     hostdev=>/dev/null,port=third,hostdev=</dev/null,hostdev=>/dev/null";

const MULTIPORT: u128 = 2;

struct Nobody;

impl devices::vdev::Machine for Nobody {
    fn end(&self, reason: Reason) {
        panic!("a guest ends the run: {reason}");
    }
}

fn console() -> Box<dyn VirtioDevice> {
    let options: Options = PORTS.parse().unwrap();
    let context = Context {
        name: "virtio-console",
        place: Placement::default(),
        machine: Arc::new(Nobody),
        is_check: false,
        claim_input: Cell::new(false),
        terminal: Arc::new(NoTerminal),
        line: &|gsi| panic!("no line {gsi} for a console"),
    };
    match devices::build(&options, &context) {
        Ok(Built::Virtio(device)) => device,
        _ => panic!("a console is a virtio device"),
    }
}

fuzz_target!(|data: &[u8]| {
    log::set_max_level(log::LevelFilter::Off);
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let plug = Plug { device: console(), faces: way.faces, gsi: 16 };
    let machine = Machine::new(vec![plug], way.is_showing);
    machine.host.forget_messages();
    let mut driver = Driver::find(&machine, 1, way);
    let bits = (guest::features(&mut input) | MULTIPORT) & driver.offered();
    let mut rings = driver.start(bits);
    assert_eq!(rings.len(), 8);
    while !input.is_empty() {
        let queue = u16::from(input.below(8));
        let ring = &rings[usize::from(queue)];
        match input.below(12) {
            0 | 1 => guest::touch_ring(&machine, ring, &mut input),
            2 | 3 => guest::offer(&machine, ring, &mut input),
            4 => driver.kick(queue),
            // A control message as drivers send them, but for what it says.
            5..=7 => {
                let (port, event, value) = (input.below(5), input.below(10), input.below(3));
                let port = if port == 4 { u32::MAX } else { port.into() };
                let message = [&port.to_le_bytes()[..], &[event, 0, value, 0]].concat();
                machine.set_bytes(0x10_0000, &message);
                let len = if input.byte() & 7 == 0 { input.byte() } else { 8 };
                rings[3].set_descriptor(0, Buf::out(0x10_0000, len.into()), 0, 0);
                rings[3].offer(0);
                driver.kick(3);
            }
            // Room for what the device has to say.
            8 | 9 => {
                rings[2].set_descriptor(1, Buf::room(0x10_1000, input.byte().into()), 2, 0);
                rings[2].offer(1);
                driver.kick(2);
            }
            _ if input.byte() & 3 != 0 => guest::touch_register(&driver, &mut input),
            _ if way.is_modern() => {
                driver.set(Reg::QueueSelect, queue.into());
                driver.set(Reg::QueueReset, 1);
                guest::enable(&driver, ring);
            }
            _ => (driver, rings) = guest::restart(&machine, way, &rings, bits),
        }
    }
    let (driver, rings) = guest::restart(&machine, way, &rings, 0);
    machine.set_bytes(0x10_0000, b"printed");
    rings[1].post(&[Buf::out(0x10_0000, 7)]);
    driver.kick(1);
    assert_eq!(rings[1].take().map(|(_, len)| len), Some(0));
});
