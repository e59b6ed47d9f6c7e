//! Descriptor chains: shapes that have to work, and shapes that break the device and nothing else (VIRTIO 1.3 §2.7.4,
//! §2.7.5).

use crate::driver::machine::{HIGH, HOLE, LOW};
use crate::driver::ring::{INDIRECT, NEXT, WRITE};
use crate::driver::way::{MODERN, every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, Plug, Probe, Ring, feature, patiently};
use crate::{echo, inline};

/// `text`, cut into readable buffers of these lengths.
fn cut(machine: &Machine, text: &[u8], lens: &[u32]) -> Vec<Buf> {
    let mut left = text;
    let bufs = lens.iter().map(|len| {
        let (now, later) = left.split_at(usize::try_from(*len).unwrap());
        left = later;
        let at = machine.ram(u64::from(*len).max(1), 1);
        machine.set_bytes(at, now);
        Buf::out(at, *len)
    });
    bufs.collect()
}

/// Room in buffers of these lengths.
fn room(machine: &Machine, lens: &[u32]) -> Vec<Buf> {
    lens.iter().map(|len| Buf::room(machine.ram(u64::from(*len).max(1), 1), *len)).collect()
}

/// What writable buffers hold, one behind the other.
fn contents(machine: &Machine, bufs: &[Buf]) -> Vec<u8> {
    let room = bufs.iter().filter(|b| b.is_writable);
    room.flat_map(|b| machine.bytes(b.addr, usize::try_from(b.len).unwrap())).collect()
}

/// Two probes on lines of their own, so that one can be broken and the other has to go on.
fn two() -> Machine {
    let plug = |gsi| Plug { device: Box::new(Probe::inline(&[8, 8])), faces: MODERN.faces, gsi };
    Machine::new(vec![plug(16), plug(17)], false)
}

/// What `offend` makes available breaks the device, and only that one; a reset cures it.
fn breaks(bits: u128, offend: impl Fn(&Machine, &Ring<'_>)) {
    let machine = two();
    let [broken, other] = [1, 2].map(|slot| Driver::find(&machine, slot, MODERN));
    let rings = broken.start(bits);
    let others = other.start(0);
    offend(&machine, &rings[0]);
    broken.kick(0);
    patiently("NEEDS_RESET", || broken.needs_reset());
    assert_eq!(rings[0].used_index(), 0, "a broken request is not given back");
    broken.expect_config();
    echo(&other, &others[0], b"not my ring");
    let rings = broken.start(bits);
    echo(&broken, &rings[0], b"cured");
}

#[test]
fn vq_03_requests_may_be_cut_anywhere() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let text = *b"sixteen letters!";
        for bits in [0, feature::INDIRECT] {
            let rings = driver.start(bits);
            for (out, into) in [
                (&[16][..], &[16][..]),
                (&[1, 15], &[3, 13]),
                (&[8, 8], &[1, 1, 14]),
                (&[1, 1, 1, 13], &[15, 1]),
                (&[2, 2, 2, 2, 2, 6], &[16]),
            ] {
                let mut bufs = cut(&machine, &text, out);
                bufs.extend(room(&machine, into));
                if bits == 0 {
                    rings[0].post(&bufs)
                } else {
                    rings[0].post_indirect(&bufs)
                };
                driver.kick(0);
                assert_eq!(rings[0].wait().1, 16);
                assert_eq!(contents(&machine, &bufs), text);
            }
            machine.host.take_messages();
        }
    });
}

#[test]
fn vq_04_a_chain_may_use_the_whole_ring() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let mut bufs = cut(&machine, b"abcd", &[1; 4]);
        bufs.extend(room(&machine, &[1; 4]));
        for _ in 0..3 {
            rings[0].post(&bufs);
            driver.kick(0);
            assert_eq!(rings[0].wait().1, 4);
            assert_eq!(contents(&machine, &bufs), b"abcd");
        }
    });
}

#[test]
fn vq_05_descriptors_and_readable_buffers_are_never_written() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        let ring = &rings[0];
        let bufs = [cut(&machine, b"do not touch", &[5, 7]), room(&machine, &[12])].concat();
        ring.post(&bufs);
        ring.post_indirect(&bufs);
        let before = machine.bytes(ring.desc, 16 * 8);
        let table = machine.ram(0, 1);
        let tables = machine.bytes(table - 48, 48);
        driver.kick(0);
        ring.wait();
        ring.wait();
        assert_eq!(machine.bytes(ring.desc, 16 * 8), before);
        assert_eq!(machine.bytes(table - 48, 48), tables);
        assert_eq!(machine.bytes(bufs[0].addr, 5), b"do no");
        assert_eq!(machine.bytes(bufs[1].addr, 7), b"t touch");
    });
}

#[test]
fn vq_06_a_descriptor_that_links_to_itself_breaks_only_the_device() {
    breaks(0, |machine, ring| {
        ring.set_descriptor(0, Buf::room(machine.ram(8, 1), 8), NEXT | WRITE, 0);
        ring.offer(0);
    });
}

#[test]
fn vq_06_a_loop_of_two_breaks_only_the_device() {
    breaks(0, |machine, ring| {
        ring.set_descriptor(0, Buf::room(machine.ram(8, 1), 8), NEXT | WRITE, 1);
        ring.set_descriptor(1, Buf::room(machine.ram(8, 1), 0), NEXT | WRITE, 0);
        ring.offer(0);
    });
}

#[test]
fn vq_06_a_link_out_of_the_table_breaks_only_the_device() {
    for next in [8, 9, 0x7fff, 0xffff] {
        breaks(0, |machine, ring| {
            ring.set_descriptor(0, Buf::room(machine.ram(8, 1), 8), NEXT | WRITE, next);
            ring.offer(0);
        });
    }
}

#[test]
fn vq_06_a_head_out_of_the_table_breaks_only_the_device() {
    for head in [8, 9, 0x8000, 0xffff] {
        breaks(0, |_, ring| ring.offer(head));
    }
}

#[test]
fn vq_06_a_chain_of_4_gib_breaks_only_the_device() {
    breaks(feature::INDIRECT, |machine, ring| {
        let whole = Buf::room(0, u32::try_from(LOW).unwrap());
        let count = usize::try_from((1 << 32) / LOW).unwrap();
        assert!(count > 8);
        // All of RAM again and again; the device must not begin to fill it.
        machine.set_bytes(0, b"first page");
        ring.post_indirect(&vec![whole; count]);
    });
}

#[test]
fn vq_06_a_table_that_links_back_breaks_only_the_device() {
    breaks(feature::INDIRECT, |machine, ring| {
        let table = machine.ram(32, 16);
        let buf = Buf::room(machine.ram(8, 1), 8);
        Ring::write_descriptor(machine, table, buf, NEXT | WRITE, 1);
        Ring::write_descriptor(machine, table + 16, buf, NEXT | WRITE, 0);
        ring.set_descriptor(0, Buf::out(table, 32), INDIRECT, 0);
        ring.offer(0);
    });
}

#[test]
fn vq_07_a_readable_buffer_behind_a_writable_one_breaks_only_the_device() {
    breaks(0, |machine, ring| {
        let at = machine.ram(16, 1);
        ring.post(&[Buf::room(at, 8), Buf::out(at + 8, 8)]);
    });
}

#[test]
fn vq_08_a_buffer_that_is_not_ram_breaks_only_the_device() {
    let top = u64::MAX;
    for (addr, len) in [
        (HOLE, 8),
        (LOW, 1),
        (LOW - 4, 8),
        (HIGH - 8, 16),
        (top, 1),
        (top, 2),
        (top - 0xf, 0x10),
        (top - 0xf, 0x20),
        (1 << 63, u32::MAX),
        (0, u32::MAX),
    ] {
        for buf in [Buf::room(addr, len), Buf::out(addr, len)] {
            breaks(0, |_, ring| {
                ring.post(&[buf]);
            });
            breaks(feature::INDIRECT, |_, ring| {
                ring.post_indirect(&[buf]);
            });
        }
    }
}

#[test]
fn vq_08_a_ring_that_is_not_ram_breaks_only_the_device() {
    let machine = two();
    let [driver, other] = [1, 2].map(|slot| Driver::find(&machine, slot, MODERN));
    let others = other.start(0);
    let good = driver.ring(0, 8, 0);
    for bad in [HOLE, LOW - 8, HIGH - 16, !0xf, 1 << 63] {
        for part in 0..3 {
            let mut places = [good.desc, good.avail, good.used];
            places[part] = bad;
            driver.negotiate(0);
            driver.enable(&Ring::at(&machine, 0, 8, places, 0));
            assert!(driver.needs_reset(), "part {part} at {bad:#x}");
            driver.finish();
            driver.kick(0);
            driver.expect_config();
            echo(&other, &others[1], b"not my ring");
        }
    }
    let rings = driver.start(0);
    echo(&driver, &rings[0], b"cured");
}

#[test]
fn vq_08_a_misaligned_ring_breaks_only_the_device() {
    let machine = inline(MODERN);
    let driver = Driver::find(&machine, 1, MODERN);
    let good = driver.ring(0, 8, 0);
    for (part, off) in [(0, 8), (0, 1), (1, 1), (2, 2), (2, 1)] {
        let mut places = [good.desc, good.avail, good.used];
        places[part] += off;
        driver.negotiate(0);
        driver.enable(&Ring::at(&machine, 0, 8, places, 0));
        assert!(driver.needs_reset(), "part {part} off by {off}");
    }
}

#[test]
fn vq_09_empty_descriptors_do_no_harm() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        // The address of nothing need not be RAM.
        let out = [vec![Buf::out(HOLE, 0)], cut(&machine, b"hello", &[0, 5, 0])].concat();
        let bufs = [out, vec![Buf::room(u64::MAX, 0)], room(&machine, &[2, 0, 3])].concat();
        rings[0].post(&bufs);
        driver.kick(0);
        assert_eq!(rings[0].wait().1, 5);
        assert_eq!(contents(&machine, &bufs), b"hello");
        rings[0].post(&[Buf::out(0, 0)]);
        driver.kick(0);
        assert_eq!(rings[0].wait().1, 0, "a request of nothing comes back");
    });
}

#[test]
fn vq_10_the_write_flag_of_a_table_means_nothing() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        for flags in [0, WRITE] {
            let bufs = [cut(&machine, b"table", &[5]), room(&machine, &[5])].concat();
            rings[0].post_mixed(&[], &bufs, flags);
            driver.kick(0);
            assert_eq!(rings[0].wait().1, 5);
            assert_eq!(contents(&machine, &bufs), b"table");
        }
    });
}

#[test]
fn vq_11_direct_descriptors_may_be_followed_by_a_table() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        let bufs = [cut(&machine, b"two and three", &[3, 4, 6]), room(&machine, &[6, 7])].concat();
        rings[0].post_mixed(&bufs[..2], &bufs[2..], 0);
        driver.kick(0);
        assert_eq!(rings[0].wait().1, 13);
        assert_eq!(contents(&machine, &bufs), b"two and three");
    });
}

#[test]
fn vq_12_tables_that_are_not_allowed_break_only_the_device() {
    let table = |machine: &Machine| {
        let table = machine.ram(64, 16);
        let buf = Buf::room(machine.ram(8, 1), 8);
        Ring::write_descriptor(machine, table, buf, WRITE, 0);
        table
    };
    let lone = |len, flags| {
        breaks(feature::INDIRECT, |machine, ring| {
            ring.set_descriptor(1, Buf::room(machine.ram(8, 1), 8), WRITE, 0);
            ring.set_descriptor(0, Buf::out(table(machine), len), INDIRECT | flags, 1);
            ring.offer(0);
        });
    };
    // Empty, cut short, and going on behind the table.
    [(0, 0), (1, 0), (15, 0), (17, 0), (31, 0), (u32::MAX, 0), (16, NEXT)]
        .into_iter()
        .for_each(|(len, flags)| lone(len, flags));
    // Not negotiated.
    breaks(0, |machine, ring| {
        ring.set_descriptor(0, Buf::out(table(machine), 16), INDIRECT, 0);
        ring.offer(0);
    });
    // A table in a table, even where the outer one goes on.
    for flags in [INDIRECT, INDIRECT | NEXT] {
        breaks(feature::INDIRECT, |machine, ring| {
            let outer = machine.ram(32, 16);
            Ring::write_descriptor(machine, outer, Buf::out(table(machine), 16), flags, 1);
            Ring::write_descriptor(machine, outer + 16, Buf::room(outer, 1), WRITE, 0);
            ring.set_descriptor(0, Buf::out(outer, 32), INDIRECT, 0);
            ring.offer(0);
        });
    }
    // A table that is not RAM, or ends beyond it.
    for at in [HOLE, LOW - 16, u64::MAX - 15, u64::MAX] {
        breaks(feature::INDIRECT, |machine, ring| {
            if at < LOW {
                Ring::write_descriptor(machine, at, Buf::room(0x100, 8), NEXT | WRITE, 1);
            }
            ring.set_descriptor(0, Buf::out(at, 32), INDIRECT, 0);
            ring.offer(0);
        });
    }
}

#[test]
fn vq_13_a_table_is_followed_by_its_links_and_may_be_longer_than_the_ring() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        let count = 16_u16;
        // Entry 0 first, then from the last one back to entry 1, at an odd address above 4 GiB.
        let table = machine.high_ram(16 * u64::from(count) + 1, 1) | 1;
        let bytes = machine.ram(u64::from(count), 1);
        let at = |n: u16| (table + 16 * u64::from(n), Buf::room(bytes + u64::from(n), 1));
        for n in 0..count {
            let next = if n == 0 { count - 1 } else { n - 1 };
            let flags = if n == 1 { WRITE } else { WRITE | NEXT };
            Ring::write_descriptor(&machine, at(n).0, at(n).1, flags, next);
        }
        rings[0].set_descriptor(0, Buf::out(table, 16 * u32::from(count)), INDIRECT, 0);
        rings[0].offer(0);
        driver.kick(0);
        patiently("the request comes back", || rings[0].used_index() == 1);
        assert_eq!(machine.bytes(rings[0].used + 4, 8), [0, 0, 0, 0, 16, 0, 0, 0]);
        assert_eq!(machine.bytes(bytes, 16), [0xa5; 16]);
    });
}
