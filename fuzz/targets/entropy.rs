//! The entropy device behind rings of the fuzzer's making.
#![no_main]

use std::fs::File;

use devices::entropy::Entropy;
use fuzz::driver::{Buf, Driver, Reg};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let machine = guest::machine(Entropy::new(File::open("/dev/zero").unwrap()), way);
    let mut driver = Driver::find(&machine, 1, way);
    let bits = guest::features(&mut input) & driver.offered();
    let mut rings = driver.start(bits);
    while !input.is_empty() {
        let ring = &rings[0];
        match input.below(8) {
            0..=2 => guest::touch_ring(&machine, ring, &mut input),
            3 | 4 => guest::offer(&machine, ring, &mut input),
            5 | 6 => {
                // A function that decodes nothing reads as all ones.
                let was_broken = driver.needs_reset() && driver.status() != 0xff;
                let before = ring.used_index();
                driver.kick(0);
                assert!(!was_broken || ring.used_index() == before, "a broken device stands still");
            }
            _ if input.byte() & 3 != 0 => guest::touch_register(&driver, &mut input),
            _ if way.is_modern() => {
                driver.set(Reg::QueueSelect, 0);
                driver.set(Reg::QueueReset, 1);
                guest::enable(&driver, ring);
            }
            _ => (driver, rings) = guest::restart(&machine, way, &rings, bits),
        }
    }
    let (driver, rings) = guest::restart(&machine, way, &rings, 0);
    machine.set_bytes(0x10_0000, &[0xff; 64]);
    rings[0].post(&[Buf::room(0x10_0000, 64)]);
    driver.kick(0);
    assert_eq!(rings[0].take().map(|(_, len)| len), Some(64));
    assert_eq!(machine.bytes(0x10_0000, 64), [0; 64]);
});
