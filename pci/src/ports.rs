//! Configuration space by way of ports 0xcf8 and 0xcfc (PCI 3.0 §3.2.2.3.2), for guests that know no ECAM.

use std::sync::{Arc, Mutex};

use devices::vdev::{Access, Effect, Region, Vdev};

use crate::lock;
use crate::root::Root;

/// The first port.
pub const FIRST: u16 = 0xcf8;
/// How many ports there are: the address, and the data behind it.
pub const COUNT: u16 = 8;

/// Offset of the data from the first port.
const DATA: u64 = 4;
/// Bit of the address: the data ports reach configuration space.
const ENABLE: u32 = 1 << 31;

/// The address and data ports.
pub struct ConfigPorts {
    root: Arc<Root>,
    address: Mutex<u32>,
}

impl ConfigPorts {
    /// The ports of the bus behind `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root, address: Mutex::new(0) }
    }

    /// The access to configuration space that one to the data ports stands for.
    fn translate(&self, offset: u64) -> Option<Access> {
        let address = *lock(&self.address);
        let within = offset.checked_sub(DATA)?;
        if address & ENABLE == 0 {
            return None;
        }
        // Bus, device and function, then the register's double word and the byte in it.
        let function = u64::from(address >> 8 & 0xffff) << 12;
        Some(Access { region: Region::PciConfig, offset: function | u64::from(address & 0xfc) | within })
    }
}

impl Vdev for ConfigPorts {
    fn name(&self) -> &str {
        "pci-config-ports"
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        if let (0, Ok(data)) = (at.offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = lock(&self.address).to_le_bytes();
        } else if let Some(access) = self.translate(at.offset) {
            self.root.vread(access, data);
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        // Only a write of all four bytes is one of the address; others at that place mean something else on a PC.
        if let (0, Ok(data)) = (at.offset, <[u8; 4]>::try_from(data)) {
            *lock(&self.address) = u32::from_le_bytes(data);
            return Effect::None;
        }
        match self.translate(at.offset) {
            Some(access) => self.root.vwrite(access, data),
            None => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Bridge;

    fn ports() -> ConfigPorts {
        let mut root = Root::default();
        assert!(root.attach(0, Arc::new(Bridge::default())));
        ConfigPorts::new(Arc::new(root))
    }

    fn at(offset: u64) -> Access {
        Access { region: Region::Port, offset }
    }

    fn read<const N: usize>(ports: &ConfigPorts, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        ports.vread(at(offset), &mut data);
        data
    }

    #[test]
    fn an_enabled_address_reaches_the_function_at_any_width() {
        let ports = ports();
        let _ = ports.vwrite(at(0), &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read::<4>(&ports, 4), [0x36, 0x1b, 0x08, 0x00]);
        assert_eq!(read::<2>(&ports, 6), [0x08, 0x00]);
        assert_eq!(read::<1>(&ports, 5), [0x1b]);
        assert_eq!(read::<4>(&ports, 0), [0, 0, 0, 0x80]);
    }

    #[test]
    fn absent_functions_and_a_disabled_address_read_all_ones() {
        let ports = ports();
        for address in [0x8000_0800_u32, 0x8001_0000, 0x0000_0000] {
            let _ = ports.vwrite(at(0), &address.to_le_bytes());
            assert_eq!(read::<4>(&ports, 4), [0xff; 4], "{address:#x}");
        }
    }

    #[test]
    fn a_narrow_write_is_no_address() {
        let ports = ports();
        let _ = ports.vwrite(at(0), &0x8000_0000_u32.to_le_bytes());
        let _ = ports.vwrite(at(0), &[0x12]);
        let _ = ports.vwrite(at(1), &[0x06]);
        let _ = ports.vwrite(at(2), &[0x34, 0x12]);
        assert_eq!(read::<4>(&ports, 0), [0, 0, 0, 0x80]);
    }
}
