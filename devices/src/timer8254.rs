//! `timer8254`: the PC's interval timer (Intel 8254), which KVM has itself.
//!
//! It is at ports 0x40 to 0x43, with its gate at 0x61, and interrupts at input 0 of the I/O APIC. The machine is a
//! hardware-reduced one, in which Linux looks for no such timer; it is there for guests that program it by themselves.

use crate::options::Options;
use crate::{Built, Context, Error, INTR, Kind, Part};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "timer8254",
    about: "the interval timer of KVM, for guests that expect one at its ports; Linux does not",
    options: &[crate::loc_at("io:0x40"), INTR],
    is_virtio: false,
    build,
};

/// The input of the I/O APIC that KVM's timer drives.
const INTERRUPT: u32 = 0;

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    match context.place.interrupt_or(INTERRUPT) {
        INTERRUPT => Ok(Built::Kvm(Part::Timer)),
        _ => Err(options.bad_value("intr", "KVM's timer interrupts at line 0, and nowhere else").into()),
    }
}
