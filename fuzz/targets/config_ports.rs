//! PCI configuration by ports 0xcf8 and 0xcfc: any address at any width, and the same bytes as by memory.
#![no_main]

use devices::virtio::Doorbell;
use fuzz::driver::function::Kind;
use fuzz::driver::{Buf, Driver, Probe};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use pci::root::ECAM_LEN;

const ADDRESS: u64 = 0xcf8;
const DATA: u64 = 0xcfc;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let machine = guest::machine(Probe::new(&[8, 4], Doorbell::Inline).0, way);
    let driver = Driver::find(&machine, 1, way);
    let rings = driver.start(0);
    // Reading the window's data acts, and so shows something else the second time.
    let window = driver.function.find_part(Kind::Window).map_or(u64::MAX, |part| part.at + 16);
    let mut address = 0;
    while !input.is_empty() {
        match input.below(8) {
            // The function, a neighbour or the bridge, at some register.
            0..=2 => {
                address = 1 << 31 | u64::from(input.below(4)) << 11 | u64::from(input.byte());
                machine.port_out(ADDRESS, 4, address);
            }
            3 => {
                address = input.value(4) & 0xffff_ffff;
                machine.port_out(ADDRESS, 4, address);
            }
            // What is not wide enough for an address, or not at its place, is none.
            4 => {
                let at = ADDRESS + u64::from(input.below(4));
                let width = if at == ADDRESS { 1 << input.below(2) } else { 1 << input.below(3) };
                machine.port_out(at, width, input.value(width));
                machine.port_in(at, width);
            }
            5 => {
                let at = DATA + u64::from(input.below(4));
                let width = 1 << input.below(3);
                machine.port_out(at, width, input.value(width));
            }
            // Within the register: what is wider reaches into the next.
            _ => {
                let (within, width) = [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (0, 4)]
                    [usize::from(input.below(8))];
                let value = machine.port_in(DATA + within, width);
                let register = address & 0xfc;
                let place = (address >> 8 & 0xffff) << 12 | register | within;
                if address >> 31 == 0 || place >= ECAM_LEN {
                    assert_eq!(value, (1 << (8 * width)) - 1, "{address:#x} reaches nothing");
                } else if register != window {
                    assert_eq!(value, machine.config_by_access(0, place, width), "{address:#x} at {within}");
                }
            }
        }
        assert_eq!(machine.port_in(ADDRESS, 4), address);
    }
    // With the function's registers put right, it serves.
    let (driver, rings) = guest::restart(&machine, way, &rings, 0);
    machine.set_bytes(0x10_0000, b"echo\0\0\0\0");
    rings[0].post(&[Buf::out(0x10_0000, 4), Buf::room(0x10_0004, 4)]);
    driver.kick(0);
    assert_eq!(rings[0].take().map(|(_, len)| len), Some(4));
});
