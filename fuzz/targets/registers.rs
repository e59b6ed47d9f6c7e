//! The register interface: every face, every width, every order, with a device behind it that echoes.
#![no_main]

use devices::virtio::Doorbell;
use fuzz::driver::{Buf, Driver, Probe};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let machine = guest::machine(Probe::new(&[8, 4], Doorbell::Inline).0, way);
    let driver = Driver::find(&machine, 1, way);
    let mut rings = driver.start(0);
    while !input.is_empty() {
        match input.below(8) {
            0 => {
                let bits = guest::features(&mut input);
                rings = guest::fresh(&machine, &rings, bits);
                driver.function.set_command(7);
                driver.reset();
                driver.set_status(3);
                driver.accept(bits | u128::from(input.byte()) << 32);
                driver.set_status(11);
                rings.iter().for_each(|ring| guest::enable(&driver, ring));
                driver.set_status(15);
            }
            1 => guest::offer(&machine, &rings[usize::from(input.byte() & 1)], &mut input),
            2 => driver.kick(input.below(4).into()),
            _ => guest::touch_register(&driver, &mut input),
        }
    }
    // After a full reset, with the function's own registers put right, it serves.
    let (driver, rings) = guest::restart(&machine, way, &rings, 0);
    machine.set_bytes(0x10_0000, b"echo\0\0\0\0");
    rings[0].post(&[Buf::out(0x10_0000, 4), Buf::room(0x10_0004, 4)]);
    driver.kick(0);
    assert_eq!(rings[0].take().map(|(_, len)| len), Some(4));
    assert_eq!(machine.bytes(0x10_0000, 8), b"echoecho");
});
