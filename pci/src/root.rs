//! The bus: finds the function that an access is meant for.
//!
//! The machine gives the root three ranges: ECAM ([`Region::PciConfig`], offsets from its start), the memory window and
//! the port window (absolute addresses). A BAR that moves needs no change outside of this file.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use devices::vdev::{Access, Effect, Region, Vdev};
use log::debug;

use crate::config::touches_decode;
use crate::function::{Function, Window};
use crate::host::{Host, Pages, Sight};

/// Bytes of ECAM for one bus: 32 slots of 8 functions of 4 KiB (PCI Express 3.0 §7.2.2).
pub const ECAM_LEN: u64 = 1 << 20;

/// Where a function sits on the bus: slot times 8 plus function number.
pub type Address = u8;

/// The bus and its functions.
#[derive(Default)]
pub struct Root {
    functions: BTreeMap<Address, Arc<dyn Function>>,
    /// What is decoded now. Swapped whole when a function's windows change.
    decoded: RwLock<Vec<(Window, Arc<dyn Function>)>>,
    /// How many accesses to the windows no function decoded.
    vacant: Arc<AtomicU64>,
}

impl Root {
    /// Puts `function` at `address`, which must be free; `false` if it is not.
    #[must_use]
    pub fn attach(&mut self, address: Address, function: Arc<dyn Function>) -> bool {
        let is_free = !self.functions.contains_key(&address);
        if is_free {
            self.functions.insert(address, function);
        }
        is_free
    }

    /// Looks whether guests will find every function, and tells the slots with several.
    ///
    /// # Errors
    ///
    /// A slot with functions but without function 0, where no guest looks further (PCI 3.0 §6.1).
    pub fn check(&self) -> Result<(), u8> {
        for address in self.functions.keys().filter(|address| *address & 7 != 0) {
            let first = self.functions.get(&(address & !7)).ok_or(address >> 3)?;
            first.set_multi_function();
        }
        Ok(())
    }

    /// Lets the guest see configuration space without an exit, where the machine can do that: ECAM, which begins at this
    /// guest-physical address, from the first slot with a function to the last one.
    pub fn show_config(&self, host: &dyn Host, ecam: u64) {
        let (Some(first), Some(last)) = (self.functions.keys().min(), self.functions.keys().max()) else {
            return;
        };
        let (first, end) = (first & !7, u64::from(last | 7).saturating_add(1));
        let count = end.saturating_sub(first.into());
        let at = |address: u64| ecam.saturating_add(address << 12);
        let Ok(pages) = host.pages(Sight::Read, count) else { return };
        let pages: Arc<dyn Pages> = pages.into();
        // Absent functions read as all ones.
        for page in 0..count {
            pages.write(page << 12, &[0xff; 4096]);
        }
        for (address, function) in &self.functions {
            let offset = u64::from(address.saturating_sub(first)) << 12;
            let page = Part { pages: Arc::clone(&pages), offset };
            function.show_config(Arc::new(page), at((*address).into()));
        }
        if let Err(error) = pages.show(Some(at(first.into()))) {
            debug!("pci: configuration space is not shown: {error}");
        }
    }

    /// The first slot that has no function. Slot 0 is the host bridge's, where there is one.
    pub fn free_slot(&self) -> Option<u8> {
        (1..32).find(|slot| !(0..8).any(|f| self.functions.contains_key(&(slot << 3 | f))))
    }

    /// The count of accesses to the windows that no function decoded, for the machine to go on counting in.
    pub fn vacant(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.vacant)
    }

    /// Finds the function, and the offset in its configuration space, of an offset in ECAM.
    fn configured(&self, offset: u64) -> Option<(&Arc<dyn Function>, Access)> {
        let address = Address::try_from(offset >> 12).ok()?;
        let access = Access { region: Region::PciConfig, offset: offset & 0xfff };
        Some((self.functions.get(&address)?, access))
    }

    /// Finds the function, and the offset in its BAR, of an address. First come, first served where BARs overlap.
    fn decode(&self, space: Region, address: u64) -> Option<(Arc<dyn Function>, Access)> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let found = decoded.iter().find_map(|(window, function)| {
            let offset =
                address.checked_sub(window.base).filter(|o| *o < window.len && window.space == space)?;
            Some((Arc::clone(function), Access { region: Region::Bar(window.bar), offset }))
        });
        if found.is_none() {
            self.vacant.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Asks every function anew what it decodes.
    fn refresh(&self) {
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        let functions = self.functions.values();
        let windows: Vec<_> =
            functions.flat_map(|f| f.windows().into_iter().map(|w| (w, Arc::clone(f)))).collect();
        let is_same = windows.len() == decoded.len()
            && (windows.iter().zip(decoded.iter()))
                .all(|((new, function), (old, by))| new == old && Arc::ptr_eq(function, by));
        if !is_same {
            debug!("pci: {:x?}", windows.iter().map(|(w, f)| (f.name(), w)).collect::<Vec<_>>());
            *decoded = windows;
        }
    }
}

/// The page of one function among those of the bus.
struct Part {
    pages: Arc<dyn Pages>,
    offset: u64,
}

impl Pages for Part {
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.pages.write(self.offset.saturating_add(offset), bytes);
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.pages.read(self.offset.saturating_add(offset), bytes);
    }

    /// A function that has to see reads takes the others' pages away too: they are one slot.
    fn show(&self, at: Option<u64>) -> io::Result<()> {
        match at {
            None => self.pages.show(None),
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Vdev for Root {
    fn name(&self) -> &str {
        "pci"
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        match at.region {
            Region::PciConfig => {
                if let Some((function, access)) = self.configured(at.offset) {
                    function.vread(access, data);
                }
            }
            Region::Memory | Region::Port => {
                if let Some((function, access)) = self.decode(at.region, at.offset) {
                    function.vread(access, data);
                }
            }
            Region::Bar(_) => {}
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        match at.region {
            Region::PciConfig => {
                let Some((function, access)) = self.configured(at.offset) else { return Effect::None };
                let effect = function.vwrite(access, data);
                if touches_decode(access.offset, data.len()) {
                    self.refresh();
                }
                effect
            }
            Region::Memory | Region::Port => match self.decode(at.region, at.offset) {
                Some((function, access)) => function.vwrite(access, data),
                None => Effect::None,
            },
            Region::Bar(_) => Effect::None,
        }
    }
}
