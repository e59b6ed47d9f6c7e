//! `pvpanic`: the port by which a guest's kernel says that it panicked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use acpi_tables::{Aml, aml};
use log::warn;

use crate::action::{self, ACTION};
use crate::options::Options;
use crate::vdev::{Access, Effect, Reason, Vdev};
use crate::{Built, Context, Error, Kind, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "pvpanic",
    about: "ends the run with status 32 when the guest's kernel panics",
    options: &[crate::loc_at("io:0x505"), ACTION],
    is_virtio: false,
    build,
};

const PORT: u16 = 0x505;

/// What a guest can say, as bits: its kernel panicked and stops.
const PANICKED: u8 = 1 << 0;
/// Its kernel panicked, and another one takes over to see to that.
const CRASH_LOADED: u8 = 1 << 1;

struct Panic {
    name: &'static str,
    is_dumped: bool,
    crashes: AtomicU64,
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let is_dumped = action::is_dumped(options)?;
    Ok(Built::Platform(Platform {
        vdev: Arc::new(Panic { name: context.name, is_dumped, crashes: AtomicU64::new(0) }),
        ports: std::iter::once(PORT..PORT.saturating_add(1)).collect(),
        memory: Vec::new(),
        interrupt: None,
        aml: describe(),
    }))
}

/// The port for the guest's ACPI namespace, as QEMU names it.
fn describe() -> Vec<u8> {
    let mut bytes = Vec::new();
    aml::Device::new(
        "PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_STA".into(), &0xf_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(PORT, PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

impl Vdev for Panic {
    fn name(&self) -> &str {
        self.name
    }

    /// What the guest may say.
    fn vread(&self, _at: Access, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn vwrite(&self, _at: Access, data: &[u8]) -> Effect {
        match data.first() {
            Some(event) if event & PANICKED != 0 => {
                Effect::End(Reason::Panicked { is_dumped: self.is_dumped })
            }
            Some(event) if event & CRASH_LOADED != 0 => {
                self.crashes.fetch_add(1, Ordering::Relaxed);
                warn!("{}: the guest's kernel panicked, and its crash kernel takes over", self.name);
                Effect::None
            }
            _ => Effect::None,
        }
    }

    fn status(&self) -> String {
        format!("{} crash kernels took over", self.crashes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    const AT: Access = Access { region: Region::Port, offset: 0 };

    #[test]
    fn a_panic_ends_the_run_with_a_status_of_its_own_and_a_crash_kernel_runs_on() {
        let panic = Panic { name: "pvpanic", is_dumped: true, crashes: AtomicU64::new(0) };
        let mut data = [0];
        panic.vread(AT, &mut data);
        assert_eq!(data, [3]);
        assert_eq!(panic.vwrite(AT, &[CRASH_LOADED]), Effect::None);
        assert_eq!(panic.vwrite(AT, &[0x80]), Effect::None);
        assert_eq!(panic.vwrite(AT, &[PANICKED]), Effect::End(Reason::Panicked { is_dumped: true }));
        assert_eq!(Reason::Panicked { is_dumped: true }.exit_status(), 32);
        assert_eq!(panic.status(), "1 crash kernels took over");
    }
}
