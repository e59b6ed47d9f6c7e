//! The window to the registers through configuration space (VIRTIO 1.3 §4.1.4.9).

use devices::virtio::Doorbell;

use crate::driver::function::{BUS_MASTER, Kind};
use crate::driver::way::modern_ways;
use crate::driver::{Buf, Driver, Reg, feature, status};
use crate::probe;

/// The window of a function.
struct Window<'a>(&'a Driver<'a>);

impl Window<'_> {
    fn at(&self) -> u64 {
        self.0.function.part(Kind::Window).at
    }

    fn aim(&self, bar: u64, offset: u64, len: u64) {
        self.0.function.set_config(self.at() + 4, 1, bar);
        self.0.function.set_config(self.at() + 8, 4, offset);
        self.0.function.set_config(self.at() + 12, 4, len);
    }

    fn read(&self, kind: Kind, offset: u64, width: usize) -> u64 {
        let part = self.0.function.part(kind);
        self.aim(part.bar, part.offset + offset, width as u64);
        self.0.function.config(self.at() + 16, width)
    }

    fn write(&self, kind: Kind, offset: u64, width: usize, value: u64) {
        let part = self.0.function.part(kind);
        self.aim(part.bar, part.offset + offset, width as u64);
        self.0.function.set_config(self.at() + 16, width, value);
    }
}

#[test]
fn pci_60_bar_offset_length_and_data_can_be_written_and_nothing_else() {
    modern_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let at = Window(&driver).at();
        let before: Vec<u64> = (0..20).map(|n| driver.function.config(at + n, 1)).collect();
        for n in 0..20 {
            driver.function.set_config(at + n, 1, 0xff);
            let is_writable = n == 4 || n >= 8;
            let expected = if is_writable { 0xff } else { before[usize::try_from(n).unwrap()] };
            assert_eq!(driver.function.config(at + n, 1), expected, "byte {n}");
        }
    });
}

#[test]
fn pci_61_the_window_reads_and_writes_the_registers_with_their_effects() {
    modern_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let window = Window(&driver);
        // Reading: the generation, queue sizes, the configuration.
        let rings = driver.start(0);
        control.change_config(6);
        let before = driver.get(Reg::Generation);
        assert_eq!(window.read(Kind::Common, 0x15, 1), before);
        control.change_config(7);
        driver.settle();
        assert_ne!(window.read(Kind::Common, 0x15, 1), before);
        assert_eq!(window.read(Kind::Device, 0, 4), 0x0707_0707);
        assert_eq!(window.read(Kind::Common, 0x12, 2), 2);
        // Reading the interrupt status clears it.
        assert_eq!(window.read(Kind::Isr, 0, 1), 2);
        assert_eq!(window.read(Kind::Isr, 0, 1), 0);
        // Writing: the configuration, a doorbell, the status.
        window.write(Kind::Device, 8, 4, 0x0403_0201);
        assert_eq!(control.written(), [1, 2, 3, 4, 0, 0, 0, 0]);
        machine.host.take_messages();
        rings[1].post(&[Buf::room(machine.ram(8, 1), 8)]);
        let bell = driver.doorbell(1) - driver.function.address(Kind::Notify);
        window.write(Kind::Notify, bell, 2, 1);
        assert_eq!(rings[1].wait().1, 8);
        driver.expect_queue(1);
        window.write(Kind::Common, 0x14, 1, 0);
        assert_eq!(driver.status(), 0);
        assert_eq!(control.resets(), 2);
    });
}

#[test]
fn pci_61_a_whole_initialisation_goes_through_the_window() {
    modern_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        let window = Window(&driver);
        let set = |at, width, value| window.write(Kind::Common, at, width, value);
        driver.function.set_command(BUS_MASTER);
        set(0x14, 1, 3);
        set(0x08, 4, 1);
        set(0x0c, 4, u64::try_from(feature::VERSION_1 >> 32).unwrap());
        set(0x14, 1, 11);
        assert_eq!(window.read(Kind::Common, 0x14, 1) & status::FEATURES_OK, 8);
        let ring = driver.ring(0, 4, 0);
        set(0x16, 2, 0);
        set(0x18, 2, 4);
        for (at, part) in [(0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used)] {
            set(at, 4, part);
            set(at + 4, 4, 0);
        }
        set(0x1c, 2, 1);
        set(0x14, 1, 15);
        ring.post(&[Buf::room(machine.ram(8, 1), 8)]);
        window.write(Kind::Notify, 0, 2, 0);
        assert_eq!(ring.wait().1, 8);
    });
}

#[test]
fn pci_62_a_window_that_makes_no_sense_does_nothing() {
    modern_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let window = Window(&driver);
        driver.start(0);
        control.change_config(1);
        driver.settle();
        let status = driver.status();
        let at = window.at();
        let isr = driver.function.part(Kind::Isr).offset;
        let common = driver.function.part(Kind::Common).offset;
        for (bar, offset, len) in [
            (2, isr, 0),
            (2, isr, 3),
            (2, isr, 8),
            (2, isr, 0xffff_ffff),
            (2, isr, 0x101),
            (0, isr, 1),
            (1, isr, 1),
            (3, isr, 1),
            (6, isr, 1),
            (0xff, isr, 1),
            (2, common + 0x15, 2),
            (2, common + 0x12, 4),
            (2, 0xffff_ffff, 1),
            (2, 0xffff_fffc, 4),
            (2, driver.function.sizes[2], 1),
        ] {
            window.aim(bar, offset, len);
            driver.function.config(at + 16, 4);
            driver.function.set_config(at + 16, 4, 0);
        }
        assert_eq!(driver.status(), status, "nothing was written");
        assert_eq!(driver.isr(), 2, "nothing was read");
    });
}

#[test]
fn pci_63_the_window_works_while_nothing_is_decoded() {
    modern_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let window = Window(&driver);
        driver.function.set_command(0);
        assert_eq!(driver.status(), 0xff);
        window.write(Kind::Common, 0x14, 1, 1);
        assert_eq!(window.read(Kind::Common, 0x14, 1), 1);
        assert_eq!(window.read(Kind::Common, 0x12, 2), 2);
    });
}
