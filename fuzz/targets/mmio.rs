//! VIRTIO in memory: the page of registers, both versions, at every width and in every order.
#![no_main]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::core::Face;
use devices::interrupt::Line;
use devices::mmio::VirtioMmio;
use devices::vdev::{Access, Effect, Region, Vdev};
use devices::virtio::Doorbell;
use fuzz::driver::way::MODERN;
use fuzz::driver::{Buf, Probe, Ring};
use fuzz::guest;
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// The wire, which is driven only to where it is not yet.
#[derive(Default)]
struct Wire(AtomicBool);

impl Line for Wire {
    fn set(&self, is_high: bool) -> io::Result<()> {
        assert_ne!(self.0.swap(is_high, Ordering::SeqCst), is_high);
        Ok(())
    }
}

struct Device(Arc<VirtioMmio>);

impl Device {
    fn get(&self, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.vread(Access { region: Region::Memory, offset }, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn set(&self, offset: u64, width: usize, value: u64) {
        let effect = self.0.vwrite(Access { region: Region::Memory, offset }, &value.to_le_bytes()[..width]);
        assert_eq!(effect, Effect::None);
    }

    /// Tells the device of a ring as a driver of this face does.
    fn place(&self, ring: &Ring<'_>, face: Face) {
        self.set(0x30, 4, ring.queue.into());
        self.set(0x38, 4, ring.size.into());
        if face == Face::Legacy {
            self.set(0x3c, 4, 4096);
            self.set(0x40, 4, ring.desc >> 12);
            return;
        }
        for (at, place) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
            self.set(at, 4, place & 0xffff_ffff);
            self.set(at + 4, 4, place >> 32);
        }
        self.set(0x44, 4, 1);
    }

    /// From reset to DRIVER_OK with these features and no others than the interface asks for.
    fn start(&self, rings: &[Ring<'_>], face: Face, bits: u128) {
        self.set(0x70, 4, 0);
        assert_eq!(self.get(0x70, 4), 0);
        self.set(0x70, 4, 3);
        self.set(0x28, 4, 4096);
        let words = [bits, (bits >> 32) | u128::from(face == Face::Modern)];
        for (select, word) in (0..).zip(words) {
            self.set(0x24, 4, select);
            self.set(0x20, 4, u64::try_from(word & 0xffff_ffff).unwrap());
        }
        self.set(0x70, 4, 11);
        rings.iter().for_each(|ring| self.place(ring, face));
        self.set(0x70, 4, 15);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let face = if input.byte() & 1 == 0 { Face::Modern } else { Face::Legacy };
    // For its memory.
    let machine = guest::machine(Probe::new(&[8], Doorbell::Inline).0, MODERN);
    let wire = Arc::new(Wire::default());
    let probe = Box::new(Probe::new(&[8, 4], Doorbell::Inline).0);
    let line = Arc::<Wire>::clone(&wire);
    let device = Device(VirtioMmio::new(probe, face, Arc::clone(&machine.memory), line).unwrap());
    let ring = |(queue, size)| match face {
        Face::Modern => Ring::scattered(&machine, queue, size, 0),
        Face::Legacy => Ring::legacy(&machine, queue, size, 0),
    };
    let rings = [(0, 8), (1, 4)].map(ring);
    device.start(&rings, face, 0);
    while !input.is_empty() {
        let ring = &rings[usize::from(input.byte() & 1)];
        match input.below(8) {
            0 | 1 => guest::touch_ring(&machine, ring, &mut input),
            2 => guest::offer(&machine, ring, &mut input),
            3 => device.set(0x50, 4, input.below(4).into()),
            // A register, most often whole.
            4 | 5 => {
                let at = u64::from(input.below(0x44)) * 4;
                let width = if input.byte() & 7 == 0 { input.width() } else { 4 };
                device.set(at, width, input.value(width));
            }
            6 => {
                let at = input.word() & 0xfff;
                let width = input.width();
                device.set(at, width, input.value(width));
                device.get(at, width);
            }
            _ => {
                let bits = guest::features(&mut input);
                guest::fresh(&machine, &rings, bits);
                device.start(&rings, face, bits);
            }
        }
        // The device's thread may raise the line meanwhile; only the driver lowers it.
        let before = device.get(0x60, 4) != 0;
        let is_high = wire.0.load(Ordering::SeqCst);
        let after = device.get(0x60, 4) != 0;
        if before == after {
            assert_eq!(is_high, after, "the line is what the status says");
        }
    }
    // After a reset it serves, whatever was done to it.
    let rings = guest::fresh(&machine, &rings, 0);
    device.start(&rings, face, 0);
    machine.set_bytes(0x10_0000, b"echo\0\0\0\0");
    rings[0].post(&[Buf::out(0x10_0000, 4), Buf::room(0x10_0004, 4)]);
    device.set(0x50, 4, 0);
    assert_eq!(rings[0].take().map(|(_, len)| len), Some(4));
    assert_eq!(machine.bytes(0x10_0000, 8), b"echoecho");
    device.set(0x64, 4, 3);
    assert!(!wire.0.load(Ordering::SeqCst));
    device.0.terminate();
});
