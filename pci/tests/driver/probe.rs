//! A device that does what a test wants to see: echoes what it reads, holds buffers back, changes its configuration.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::chain::Chain;
use devices::queue::{Fault, Queues};
use devices::virtio::{Desc, Doorbell, Interest, Next, QueueDesc, Timing, VirtioDevice, Wake, Watch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::machine::patiently;

/// Bytes of the device-specific configuration. The first half is the device's, the other half the driver's.
pub const CONFIG_LEN: usize = 16;

/// The device. A request is answered with its own bytes, or with `0xa5` where it has none to read.
pub struct Probe {
    desc: Desc,
    control: Arc<Control>,
    is_watching: bool,
}

/// The host's side of the device.
pub struct Control {
    poke: EventFd,
    state: Mutex<State>,
}

/// What the host wants, and what the device did.
#[derive(Default)]
struct State {
    config: [u8; CONFIG_LEN],
    wanted: Option<u8>,
    /// Take nothing.
    is_holding: bool,
    /// Give requests back in the reverse order.
    is_backwards: bool,
    /// Ask to be served again after this time.
    deadline: Option<Duration>,
    pokes: u64,
    deadlines: u64,
    services: u64,
    resets: u64,
    queue_resets: Vec<u16>,
}

impl Probe {
    /// A device with queues of these sizes.
    pub fn new(sizes: &[u16], doorbell: Doorbell) -> (Self, Arc<Control>) {
        let control =
            Arc::new(Control { poke: EventFd::new(EFD_NONBLOCK).unwrap(), state: Mutex::default() });
        let desc = Desc {
            name: "probe",
            device_type: 0x2a,
            transitional_id: 0x1009,
            class: 0x00ff,
            features: 1,
            queues: sizes
                .iter()
                .map(|size| QueueDesc { size: *size, doorbell, timing: Timing::AtOnce })
                .collect(),
            config_len: CONFIG_LEN,
        };
        (Self { desc, control: Arc::clone(&control), is_watching: false }, control)
    }

    /// One with an inline doorbell.
    pub fn inline(sizes: &[u16]) -> Self {
        Self::new(sizes, Doorbell::Inline).0
    }
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the device takes nothing from now on.
    pub fn hold(&self, is_holding: bool) {
        self.state().is_holding = is_holding;
    }

    /// Whether the device gives requests back in the reverse order.
    pub fn go_backwards(&self, is_backwards: bool) {
        self.state().is_backwards = is_backwards;
    }

    /// The device is to ask for a deadline when it is served next.
    pub fn ask_deadline(&self, after: Duration) {
        self.state().deadline = Some(after);
    }

    /// How often a deadline came.
    pub fn deadlines(&self) -> u64 {
        self.state().deadlines
    }

    /// Rings the device from the host's side: it serves all its queues.
    pub fn poke(&self) {
        self.poke.write(1).unwrap();
    }

    /// How often the device heard from the host.
    pub fn pokes(&self) -> u64 {
        self.state().pokes
    }

    /// How often it was served.
    pub fn services(&self) -> u64 {
        self.state().services
    }

    /// Changes the configuration to eight times `value`, and waits until it is done.
    pub fn change_config(&self, value: u8) {
        self.state().wanted = Some(value);
        self.poke();
        patiently("a change of configuration", || self.state().wanted.is_none());
    }

    /// The driver's half of the configuration.
    pub fn written(&self) -> [u8; CONFIG_LEN / 2] {
        self.state().config[CONFIG_LEN / 2..].try_into().unwrap()
    }

    /// How often the device was reset.
    pub fn resets(&self) -> u64 {
        self.state().resets
    }

    /// Which queues were reset alone.
    pub fn queue_resets(&self) -> Vec<u16> {
        self.state().queue_resets.clone()
    }
}

/// Answers one request.
fn answer(chain: &mut Chain<'_>) {
    let mut bytes = [0; 4096];
    if chain.readable() == 0 {
        while chain.write(&[0xa5; 4096]) > 0 {}
        return;
    }
    loop {
        let count = chain.read(&mut bytes);
        chain.write(&bytes[..count]);
        if count == 0 {
            return;
        }
    }
}

impl VirtioDevice for Probe {
    fn desc(&self) -> Desc {
        self.desc.clone()
    }

    fn service(&mut self, wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        let mut state = self.control.state();
        let mut next = Next::default();
        state.services += 1;
        match wake {
            Wake::Host(_) => {
                let _ = self.control.poke.read();
                state.pokes += 1;
                if let Some(value) = state.wanted.take() {
                    state.config[..CONFIG_LEN / 2].fill(value);
                    next.config_changed = true;
                }
            }
            Wake::Deadline => state.deadlines += 1,
            Wake::Queue(_) => {}
        }
        next.deadline = state.deadline.take();
        if !self.is_watching {
            self.is_watching = true;
            let fd = self.control.poke.as_raw_fd();
            next.watch = Some(vec![Watch { fd, interest: Interest::Read, token: 7 }]);
        }
        let (is_holding, is_backwards) = (state.is_holding, state.is_backwards);
        drop(state);
        if is_holding {
            return Ok(next);
        }
        let all = 0..u16::try_from(self.desc.queues.len()).unwrap();
        for queue in all.filter(|q| !matches!(wake, Wake::Queue(n) if n != *q)) {
            let mut answered = Vec::new();
            while let Some(mut chain) = queues.pop(queue)? {
                answer(&mut chain);
                if is_backwards {
                    answered.push(chain);
                } else {
                    queues.complete(chain)?;
                }
            }
            for chain in answered.into_iter().rev() {
                queues.complete(chain)?;
            }
        }
        Ok(next)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.control.state();
        let from = usize::try_from(offset).ok().and_then(|at| state.config.get(at..));
        data.iter_mut().zip(from.unwrap_or_default()).for_each(|(to, from)| *to = *from);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let mut state = self.control.state();
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            let index = usize::try_from(at).unwrap();
            if (CONFIG_LEN / 2..CONFIG_LEN).contains(&index) {
                state.config[index] = *byte;
            }
        }
    }

    fn reset_queue(&mut self, queue: u16) {
        let mut state = self.control.state();
        if state.queue_resets.len() < 1024 {
            state.queue_resets.push(queue);
        }
    }

    fn reset(&mut self) {
        self.is_watching = false;
        let mut state = self.control.state();
        state.resets += 1;
        state.deadline = None;
    }
}
