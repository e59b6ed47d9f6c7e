//! The console behind rings of the fuzzer's making, with a user who types and reads.
#![no_main]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use devices::console::Console;
use fuzz::driver::{Buf, Driver, Reg};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// The same stream, without waiting.
fn open_again(fd: &impl AsRawFd) -> File {
    let own = OpenOptions::new().read(true).custom_flags(0o4000).clone();
    own.open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let way = guest::way(&mut input);
    let (typed, mut keyboard) = pipe().unwrap();
    let (screen, shown) = pipe().unwrap();
    let mut screen = open_again(&screen);
    let mut drain = || while screen.read(&mut [0; 0x1_0000]).is_ok_and(|count| count > 0) {};
    let console = Console::open(Some(typed.as_fd()), Some(shown.as_fd())).unwrap();
    let machine = guest::machine(console, way);
    let mut driver = Driver::find(&machine, 1, way);
    let bits = guest::features(&mut input) & driver.offered();
    let mut rings = driver.start(bits);
    let mut left = 1024_usize;
    while !input.is_empty() {
        let queue = u16::from(input.byte() & 1);
        let ring = &rings[usize::from(queue)];
        match input.below(8) {
            0..=2 => guest::touch_ring(&machine, ring, &mut input),
            3 | 4 => guest::offer(&machine, ring, &mut input),
            5 => {
                driver.kick(queue);
                drain();
            }
            6 => {
                let count = usize::from(input.below(32)).min(left);
                left -= count;
                keyboard.write_all(&b"what somebody types into it all "[..count]).unwrap();
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
    drain();
    machine.set_bytes(0x10_0000, b"printed");
    rings[1].post(&[Buf::out(0x10_0000, 7)]);
    driver.kick(1);
    assert_eq!(rings[1].take().map(|(_, len)| len), Some(0));
    let mut line = [0; 16];
    let count = screen.read(&mut line).unwrap();
    assert_eq!(&line[..count], b"printed");
});
