//! A host that delivers nothing and takes note of everything.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pci::host::{Bell, Host, Pages, Sight};
use vmm_sys_util::eventfd::EventFd;

use super::pages::Slots;

/// How long a test waits for something that is bound to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the functions asked of the host.
#[derive(Default)]
pub struct Notes {
    state: Mutex<State>,
    changed: Condvar,
    /// Pages that the guest sees, where the machine shows any.
    pub slots: Option<Slots>,
}

#[derive(Default)]
struct State {
    /// Messages that nobody has looked at yet: address and data.
    messages: Vec<(u64, u32)>,
    /// Messages that were not kept, because nobody looks at them.
    is_forgetful: bool,
    sent: u64,
    lines: BTreeMap<u32, bool>,
    /// How often a line rose.
    rises: u64,
    /// Doorbells, with the descriptor that each was bound to.
    bells: Vec<(Bell, RawFd, EventFd)>,
    /// Calls that a kernel would have refused.
    refused: Vec<String>,
    /// Where writes may come late.
    late: Vec<Range<u64>>,
    /// Messages to refuse, as KVM refuses an address that no local APIC answers.
    refuses_messages: bool,
}

impl State {
    fn refuse(&mut self, what: String) {
        if self.refused.len() < 64 {
            self.refused.push(what);
        }
    }
}

impl Notes {
    /// A host that shows pages and lets writes come late.
    pub fn showing() -> Self {
        Self { slots: Some(Slots::default()), ..Self::default() }
    }

    /// Whether a write may come late.
    pub fn is_late(&self, at: u64, width: usize) -> bool {
        self.state().late.iter().any(|r| r.start <= at && at.saturating_add(width as u64) <= r.end)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the messages that came since the last call.
    pub fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.state().messages)
    }

    /// Waits until `count` messages are there, and takes them all.
    pub fn wait_messages(&self, count: usize) -> Vec<(u64, u32)> {
        let state = self.state();
        let wait = self.changed.wait_timeout_while(state, PATIENCE, |s| s.messages.len() < count);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.messages)
    }

    /// Whether the line of `gsi` is high.
    pub fn is_high(&self, gsi: u32) -> bool {
        self.state().lines.get(&gsi).copied().unwrap_or(false)
    }

    /// Waits until the line of `gsi` is high; `false` if it never is.
    pub fn wait_high(&self, gsi: u32) -> bool {
        let is_low = |s: &mut State| !s.lines.get(&gsi).copied().unwrap_or(false);
        let wait = self.changed.wait_timeout_while(self.state(), PATIENCE, is_low);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How often a line rose.
    pub fn rises(&self) -> u64 {
        self.state().rises
    }

    /// How many messages were sent in all.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// From now on messages are counted and not kept.
    pub fn forget_messages(&self) {
        self.state().is_forgetful = true;
    }

    /// Whether messages are refused from now on.
    pub fn refuse_messages(&self, refuses: bool) {
        self.state().refuses_messages = refuses;
    }

    /// The doorbells that are bound.
    pub fn bells(&self) -> Vec<Bell> {
        self.state().bells.iter().map(|(bell, ..)| *bell).collect()
    }

    /// Calls that a kernel would have refused.
    pub fn refused(&self) -> Vec<String> {
        self.state().refused.clone()
    }

    /// A guest's write that may ring a doorbell; `true` if it did, and the write goes no further.
    pub fn ring(&self, is_rung: impl Fn(Bell) -> bool) -> bool {
        let state = self.state();
        let bell = state.bells.iter().find(|(bell, ..)| is_rung(*bell));
        bell.is_some_and(|(.., event)| event.write(1).is_ok())
    }
}

impl Host for Notes {
    fn send_msi(&self, address: u64, data: u32) -> io::Result<()> {
        let mut state = self.state();
        if state.refuses_messages {
            return Err(io::Error::from_raw_os_error(22));
        }
        state.sent += 1;
        if !state.is_forgetful {
            state.messages.push((address, data));
        }
        self.changed.notify_all();
        Ok(())
    }

    fn set_line(&self, gsi: u32, is_high: bool) -> io::Result<()> {
        let mut state = self.state();
        let was_high = state.lines.insert(gsi, is_high).unwrap_or(false);
        if is_high && !was_high {
            state.rises += 1;
        }
        self.changed.notify_all();
        Ok(())
    }

    fn bind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()> {
        let mut state = self.state();
        // A port doorbell answers to its value too, so two queues may share the port.
        if state.bells.iter().any(|(b, ..)| *b == bell) {
            state.refuse(format!("{bell:x?} is bound twice"));
            return Err(io::Error::from_raw_os_error(17));
        }
        let own = event.try_clone()?;
        state.bells.push((bell, event.as_raw_fd(), own));
        Ok(())
    }

    fn unbind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()> {
        let mut state = self.state();
        match state.bells.iter().position(|(b, fd, _)| *b == bell && *fd == event.as_raw_fd()) {
            Some(index) => {
                state.bells.remove(index);
                Ok(())
            }
            None => {
                state.refuse(format!("{bell:x?} is unbound and was not bound"));
                Err(io::Error::from_raw_os_error(2))
            }
        }
    }

    fn pages(&self, sight: Sight, count: u64) -> io::Result<Box<dyn Pages>> {
        match &self.slots {
            Some(slots) => Ok(slots.add(sight, count)),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn defer_writes(&self, range: Range<u64>, is_on: bool) -> io::Result<()> {
        if self.slots.is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut state = self.state();
        match (is_on, state.late.iter().position(|r| *r == range)) {
            (true, _) => state.late.push(range),
            (false, Some(index)) => drop(state.late.remove(index)),
            (false, None) => state.refuse(format!("writes to {range:x?} were not late")),
        }
        Ok(())
    }
}
