//! `ioapic`: the I/O APIC, which KVM has itself and which is always there. Naming it gives `intr` a name to use.

use crate::options::Options;
use crate::{Built, Context, Error, Kind, OptionHelp, Part};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "ioapic",
    about: "the I/O APIC of KVM, always there; give it a name for 'intr NAME:LINE'",
    options: &[
        crate::loc_at("mem:0xfec00000"),
        OptionHelp {
            name: "intr",
            value: "apic",
            about: "that it interrupts the processors, as qvm wants it said",
        },
    ],
    is_virtio: false,
    build,
};

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    match context.place.interrupt {
        None => Ok(Built::Kvm(Part::IoApic)),
        Some(_) => Err(options.bad_value("intr", "the I/O APIC interrupts the processors: intr apic").into()),
    }
}
