//! The host bridge: the function at 00:00.0 that guests expect, with nothing behind it.

use std::sync::{Arc, Mutex};

use devices::vdev::{Access, Effect, Region, Vdev};

use crate::config::{ConfigSpace, Identity};
use crate::function::{Function, Window};
use crate::host::Pages;
use crate::lock;

/// Vendor, device and class of a host bridge that no driver binds to.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x0600,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The bridge.
pub struct Bridge {
    config: Mutex<ConfigSpace>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self { config: Mutex::new(ConfigSpace::new(IDENTITY)) }
    }
}

impl Vdev for Bridge {
    fn name(&self) -> &str {
        "host-bridge"
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        if at.region == Region::PciConfig {
            lock(&self.config).read(at.offset, data);
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        if at.region == Region::PciConfig {
            lock(&self.config).write(at.offset, data);
        }
        Effect::None
    }
}

impl Function for Bridge {
    fn windows(&self) -> Vec<Window> {
        Vec::new()
    }

    fn show_config(&self, page: Arc<dyn Pages>, _at: u64) {
        page.write(0, &[0; 4096]);
        page.write(0, lock(&self.config).bytes());
    }

    fn set_multi_function(&self) {
        lock(&self.config).set_multi_function();
    }
}
