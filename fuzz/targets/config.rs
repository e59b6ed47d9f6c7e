//! PCI configuration space: BARs that move, decoding, the window, and the page that shows it all.
#![no_main]

use devices::virtio::Doorbell;
use fuzz::driver::{Driver, Probe};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let machine = guest::machine(Probe::new(&[8, 4], Doorbell::Inline).0, way);
    let driver = Driver::find(&machine, 1, way);
    let rings = driver.start(0);
    let window = driver.function.find_part(fuzz::driver::function::Kind::Window).map(|part| part.at);
    let capabilities = driver.function.capabilities();
    while !input.is_empty() {
        let width = 1 << input.below(3);
        match input.below(8) {
            0..=3 => {
                let at = input.word() & 0xff;
                machine.set_config(1, at, width, input.value(width));
            }
            4 => {
                let at = input.word() & 0xfff;
                let slot = input.below(33);
                machine.config(slot, at, width);
            }
            // The window, aimed with some sense.
            5 => {
                if let Some(window) = window {
                    machine.set_config(1, window + 4, 1, input.value(1) | 2);
                    machine.set_config(
                        1,
                        window + 8,
                        4,
                        u64::from(input.below(6)) * 0x1000 + input.word() % 0x48,
                    );
                    machine.set_config(1, window + 12, 4, input.width() as u64);
                    if input.byte() & 1 == 0 {
                        machine.config(1, window + 16, width);
                    } else {
                        machine.set_config(1, window + 16, width, input.value(width));
                    }
                }
            }
            // Whatever answers there now.
            6 => {
                let at = input.value(4) << 12 | input.word() & 0xfff;
                machine.store(at, width, input.value(width));
                machine.load(at, width);
            }
            _ => {
                machine.port_out(input.word(), width, input.value(width));
                machine.port_in(input.word(), width);
            }
        }
        // What the guest sees without an access is what an access would show it.
        if way.is_showing {
            for at in (0..0x40).step_by(4) {
                assert_eq!(machine.config(1, at, 4), machine.config_by_access(1, at, 4), "{at:#x}");
            }
        }
        assert_eq!(driver.function.capabilities(), capabilities);
    }
    let (driver, rings) = guest::restart(&machine, way, &rings, 0);
    rings[0].post(&[fuzz::driver::Buf::room(0x10_0000, 4)]);
    driver.kick(0);
    assert_eq!(rings[0].take().map(|(_, len)| len), Some(4));
});
