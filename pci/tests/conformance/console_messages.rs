//! The console's control messages: how drivers lay them out in their buffers, and which ports they may speak of
//! (VIRTIO 1.3 §5.3.6.2, §5.3.6.4).

use std::os::unix::net::UnixStream;

use crate::console_hosts::{Scratch, console};
use crate::console_ports::{
    CONSOLE_PORT, CONTROL_RECEIVE, CONTROL_TRANSMIT, DEVICE_READY, MULTIPORT, PORT_ADD, PORT_NAME, PORT_OPEN,
    PORT_READY, Ports, THREE, text,
};
use crate::driver::way::{every_way, legacy_ways};
use crate::driver::{Buf, Driver, feature};

/// Says that the driver is ready in a message of these pieces, and hears the answer in room of these pieces.
fn shake_hands(ports: &Ports<'_>, said: &[usize], heard: &[u32]) {
    let machine = ports.driver.machine;
    let [receive, transmit] =
        [CONTROL_RECEIVE, CONTROL_TRANSMIT].map(|queue| &ports.rings[usize::from(queue)]);
    let room: Vec<Buf> = heard.iter().map(|len| Buf::room(machine.ram((*len).into(), 1), *len)).collect();
    receive.post(&room);
    ports.driver.kick(CONTROL_RECEIVE);
    // DEVICE_READY, of no port in particular.
    let mut message = &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0][..];
    let pieces = said.iter().map(|len| {
        let (piece, rest) = message.split_at(*len);
        message = rest;
        text(machine, piece)
    });
    transmit.post(&pieces.collect::<Vec<_>>());
    ports.driver.kick(CONTROL_TRANSMIT);
    assert_eq!(transmit.wait().1, 0);
    assert_eq!(receive.wait().1, 8);
    let bytes = room.iter().flat_map(|buf| machine.bytes(buf.addr, usize::try_from(buf.len).unwrap()));
    assert_eq!(bytes.take(8).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 0, 0, 0], "port 0 is added");
}

#[test]
fn leg_20_control_messages_come_in_one_descriptor_or_several() {
    every_way(|way| {
        let machine = console(THREE, way);
        let start = |bits: u128| {
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(MULTIPORT | bits);
            Ports { driver, rings }
        };
        shake_hands(&start(0), &[8], &[64]);
        // A modern driver need not ask.
        let any_layout = if way.is_modern() { 0 } else { feature::ANY_LAYOUT };
        for (said, heard) in [(&[4, 2, 2][..], &[4, 60][..]), (&[1, 7], &[1, 1, 1, 1, 1, 1, 1, 1])] {
            shake_hands(&start(any_layout), said, heard);
        }
    });
    legacy_ways(|way| {
        let machine = console(THREE, way);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!(driver.offered() & feature::ANY_LAYOUT, feature::ANY_LAYOUT);
    });
}

/// Whoever comes and goes at a port's other end, and whatever the driver thinks of it, the port stays: every message is
/// one of those that are expected, and none is PORT_REMOVE.
#[test]
fn con_14_no_port_goes_that_was_not_added() {
    every_way(|way| {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let machine = console(&format!("hostdev=>/dev/null,port=p,hostdev=unix:{socket}"), way);
        for _ in 0..3 {
            let ports = Ports::start(&machine, way);
            let room = ports.expect_silence();
            ports.say(u32::MAX, DEVICE_READY, 1);
            assert_eq!(ports.heard(room), (0, PORT_ADD, 0, vec![]));
            assert_eq!(ports.hear(), (1, PORT_ADD, 0, vec![]));
            ports.say(1, PORT_READY, 1);
            assert_eq!(ports.hear(), (1, PORT_NAME, 1, b"p".to_vec()));
            let client = UnixStream::connect(&socket).unwrap();
            assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
            ports.say(1, PORT_OPEN, 1);
            ports.say(1, PORT_OPEN, 0);
            assert_eq!(ports.hear(), (1, PORT_OPEN, 0, vec![]));
            drop(client);
            // The driver could not add it, and then could.
            ports.say(1, PORT_READY, 0);
            let room = ports.expect_silence();
            ports.say(1, PORT_READY, 1);
            assert_eq!(ports.heard(room), (1, PORT_NAME, 1, b"p".to_vec()));
            // It gives up, and thinks better of it: its ports are new to it then.
            ports.say(u32::MAX, DEVICE_READY, 0);
            let room = ports.expect_silence();
            ports.say(u32::MAX, DEVICE_READY, 1);
            assert_eq!(ports.heard(room), (0, PORT_ADD, 0, vec![]));
            assert_eq!(ports.hear(), (1, PORT_ADD, 0, vec![]));
            ports.say(0, PORT_READY, 1);
            assert_eq!([0; 2].map(|_| ports.hear().1), [CONSOLE_PORT, PORT_OPEN]);
            ports.expect_silence();
        }
    });
}
