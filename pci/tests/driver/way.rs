//! The ways in which a device can be driven: interface, face of it, interrupt.

use pci::virtio::Faces;

/// How interrupts come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Messages, a vector of its own for each event.
    Msix,
    /// The level of a shared line.
    Intx,
}

/// The interface that the driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// VIRTIO 1.0 and later.
    Modern,
    /// VIRTIO 0.9.5.
    Legacy,
}

/// One way to drive a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What the function presents.
    pub faces: Faces,
    /// What the driver uses of it.
    pub face: Face,
    /// How interrupts come.
    pub wire: Wire,
    /// The machine shows pages to the guest and lets writes come late (`docs/decisions/001`).
    pub is_showing: bool,
}

/// A modern function and MSI-X, for what concerns no other.
pub const MODERN: Way = Way { faces: Faces::Modern, face: Face::Modern, wire: Wire::Msix, is_showing: false };
/// A modern function and INTx.
pub const MODERN_INTX: Way = Way { wire: Wire::Intx, ..MODERN };
/// A legacy function and INTx.
pub const LEGACY: Way = Way { faces: Faces::Legacy, face: Face::Legacy, ..MODERN_INTX };
/// A legacy function and MSI-X.
pub const LEGACY_MSIX: Way = Way { wire: Wire::Msix, ..LEGACY };

/// Every way there is.
pub fn all() -> impl Iterator<Item = Way> {
    let faces = [
        (Faces::Modern, Face::Modern),
        (Faces::Legacy, Face::Legacy),
        (Faces::Transitional, Face::Modern),
        (Faces::Transitional, Face::Legacy),
    ];
    let wires = [(Wire::Msix, false), (Wire::Intx, false), (Wire::Msix, true), (Wire::Intx, true)];
    faces.into_iter().flat_map(move |(faces, face)| {
        wires.into_iter().map(move |(wire, is_showing)| Way { faces, face, wire, is_showing })
    })
}

impl Way {
    /// Whether the driver uses the modern interface.
    pub fn is_modern(self) -> bool {
        self.face == Face::Modern
    }
}

fn each(ways: impl Iterator<Item = Way>, test: impl Fn(Way)) {
    for way in ways {
        // Shown when the test fails.
        println!("{way:?}");
        test(way);
    }
}

/// Runs `test` in every way there is.
pub fn every_way(test: impl Fn(Way)) {
    each(all(), test);
}

/// Runs `test` in every way of the modern interface.
pub fn modern_ways(test: impl Fn(Way)) {
    each(all().filter(|w| w.is_modern()), test);
}

/// Runs `test` in every way that interrupts by `wire`.
pub fn ways_by(wire: Wire, test: impl Fn(Way)) {
    each(all().filter(|w| w.wire == wire), test);
}

/// Runs `test` in every way of the legacy interface.
pub fn legacy_ways(test: impl Fn(Way)) {
    each(all().filter(|w| !w.is_modern()), test);
}
