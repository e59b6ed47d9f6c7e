//! `counter`: the example of docs/writing-a-vdev.md. A register of 32 bits that counts how often it was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::location::Location;
use crate::options::Options;
use crate::vdev::{Access, Effect, Vdev};
use crate::{Built, Context, Error, Kind, LOC_ANY, OptionHelp, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "counter",
    about: "an example: a register that counts how often it was read",
    options: &[
        LOC_ANY,
        OptionHelp { name: "step", value: "NUMBER", about: "how much each read adds (default: 1)" },
    ],
    is_virtio: false,
    build,
};

/// The register's usual place, and its bytes.
const PORT: u16 = 0x510;
const LEN: u16 = 4;

struct Counter {
    name: &'static str,
    step: u32,
    count: AtomicU32,
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let step = options.parsed("step", |text| text.parse().map_err(|_| "a step is a number of 32 bits"))?;
    let counter = Counter { name: context.name, step: step.unwrap_or(1), count: AtomicU32::new(0) };
    let (ports, memory) = match context.place.location {
        Some(Location::Memory(address)) => (vec![], vec![address..address.saturating_add(LEN.into())]),
        _ => {
            let port = context.place.port_or(PORT);
            (vec![port..port.saturating_add(LEN)], vec![])
        }
    };
    Ok(Built::Platform(Platform { vdev: Arc::new(counter), ports, memory, interrupt: None, aml: vec![] }))
}

impl Vdev for Counter {
    fn name(&self) -> &str {
        self.name
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        // Another width or place is a guest's mistake: it reads all ones, as where nothing is.
        if (at.offset, data.len()) == (0, 4) {
            let count = self.count.fetch_add(self.step, Ordering::Relaxed);
            data.iter_mut().zip(count.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        if let (0, Some(bytes), 4) = (at.offset, data.first_chunk(), data.len()) {
            self.count.store(u32::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        Effect::None
    }

    fn status(&self) -> String {
        format!("at {}", self.count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    const AT: Access = Access { region: Region::Port, offset: 0 };

    #[test]
    fn it_counts_reads_from_what_was_written() {
        let counter = Counter { name: "counter", step: 2, count: AtomicU32::new(0) };
        let read = || {
            let mut data = [0xff; 4];
            counter.vread(AT, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!([read(), read()], [0, 2]);
        assert_eq!(counter.vwrite(AT, &40_u32.to_le_bytes()), Effect::None);
        assert_eq!([read(), read()], [40, 42]);
        assert_eq!(counter.status(), "at 44");
    }

    #[test]
    fn another_width_or_place_is_nobodys() {
        let counter = Counter { name: "counter", step: 1, count: AtomicU32::new(7) };
        let mut data = [0xff; 2];
        counter.vread(AT, &mut data);
        counter.vread(Access { offset: 2, ..AT }, &mut data);
        assert_eq!(data, [0xff; 2]);
        assert_eq!(counter.vwrite(AT, &[1]), Effect::None);
        assert_eq!(counter.status(), "at 7");
    }
}
