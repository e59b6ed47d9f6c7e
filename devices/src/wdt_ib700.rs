//! `wdt-ib700`: the watchdog of the IB700 boards. A guest that does not write to it in time is bitten.
//!
//! The guest only writes: to one port to start it or to start it anew, with a number that stands for the time, to the
//! other to stop it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::error;

use crate::action::{self, ACTION};
use crate::options::Options;
use crate::thread::named;
use crate::vdev::{Access, Effect, Machine, Reason, Vdev};
use crate::{Built, Context, Error, Kind, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "wdt-ib700",
    about: "a watchdog that ends the run if the guest does not write to it in time",
    options: &[crate::loc_at("io:0x441"), ACTION],
    is_virtio: false,
    build,
};

/// The port that stops the watchdog, and the one that starts it.
const STOP: u16 = 0x441;
const START: u16 = 0x443;
const START_OFFSET: u64 = 2;

/// The time that a number stands for: 0 is 30 seconds, each more is two seconds less, 15 is none.
fn time(number: u8) -> Duration {
    let steps = 15_u64.saturating_sub(u64::from(number & 0xf));
    Duration::from_secs(steps.saturating_mul(2))
}

#[derive(Default)]
struct State {
    /// When it bites.
    deadline: Option<Instant>,
    is_stopping: bool,
    starts: u64,
    thread: Option<JoinHandle<()>>,
}

struct Watchdog {
    name: &'static str,
    is_dumped: bool,
    machine: Arc<dyn Machine>,
    state: Mutex<State>,
    changed: Condvar,
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let vdev = Arc::new(Watchdog {
        name: context.name,
        is_dumped: action::is_dumped(options)?,
        machine: Arc::clone(&context.machine),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let ports = [STOP, START].map(|port| port..port.saturating_add(1));
    Ok(Built::Platform(Platform {
        vdev,
        ports: ports.into(),
        memory: Vec::new(),
        interrupt: None,
        aml: Vec::new(),
    }))
}

impl Watchdog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: sleeps until it is time to bite.
    fn run(&self) {
        let mut state = self.state();
        while !state.is_stopping {
            let now = Instant::now();
            let waited = match state.deadline {
                Some(deadline) if deadline <= now => {
                    state.deadline = None;
                    return self.machine.end(Reason::Watchdog { is_dumped: self.is_dumped });
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now);
                    self.changed
                        .wait_timeout(state, left)
                        .map(|(state, _)| state)
                        .map_err(|it| it.into_inner().0)
                }
                None => self.changed.wait(state).map_err(PoisonError::into_inner),
            };
            state = waited.unwrap_or_else(|state| state);
        }
    }
}

impl Vdev for Watchdog {
    fn name(&self) -> &str {
        self.name
    }

    fn guest_configured(self: Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(&self);
        let thread = named(KIND.name).spawn(move || this.run());
        let thread = thread.map_err(|source| Error::Worker { vdev: KIND.name, source })?;
        self.state().thread = Some(thread);
        Ok(())
    }

    fn vread(&self, _at: Access, _data: &mut [u8]) {}

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        let Some(&number) = data.first() else { return Effect::None };
        let mut state = self.state();
        state.deadline = match at.offset {
            START_OFFSET => {
                state.starts = state.starts.saturating_add(1);
                Instant::now().checked_add(time(number))
            }
            _ => None,
        };
        self.changed.notify_all();
        Effect::None
    }

    fn status(&self) -> String {
        let state = self.state();
        let left = state.deadline.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
        let left = left.map_or("stopped".into(), |seconds| format!("bites in {seconds} s"));
        format!("{left}, started {} times", state.starts)
    }

    fn terminate(&self) {
        self.state().is_stopping = true;
        self.changed.notify_all();
        let thread = self.state().thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            error!("{}: the device's thread panicked", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    #[derive(Default)]
    struct Ends(Mutex<Option<Reason>>);

    impl Machine for Ends {
        fn end(&self, reason: Reason) {
            *self.0.lock().unwrap() = Some(reason);
        }
    }

    fn watchdog(is_dumped: bool) -> (Arc<Watchdog>, Arc<Ends>) {
        let ends = Arc::new(Ends::default());
        let machine = Arc::<Ends>::clone(&ends);
        let state = Mutex::default();
        let vdev = Watchdog { name: "dog", is_dumped, machine, state, changed: Condvar::new() };
        (Arc::new(vdev), ends)
    }

    fn write(watchdog: &Watchdog, offset: u64, value: u8) {
        assert_eq!(watchdog.vwrite(Access { region: Region::Port, offset }, &[value]), Effect::None);
    }

    #[test]
    fn the_numbers_are_those_of_the_board() {
        assert_eq!([0, 1, 14, 15, 0xf0].map(|number| time(number).as_secs()), [30, 28, 2, 0, 30]);
    }

    #[test]
    fn it_bites_a_guest_that_does_not_write() {
        let (watchdog, ends) = watchdog(true);
        Arc::clone(&watchdog).guest_configured().unwrap();
        write(&watchdog, START_OFFSET, 15);
        let start = Instant::now();
        while ends.0.lock().unwrap().is_none() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*ends.0.lock().unwrap(), Some(Reason::Watchdog { is_dumped: true }));
        watchdog.terminate();
    }

    #[test]
    fn it_does_not_bite_a_guest_that_stopped_it_or_never_started_it() {
        let (watchdog, ends) = watchdog(false);
        Arc::clone(&watchdog).guest_configured().unwrap();
        write(&watchdog, START_OFFSET, 0);
        assert!(watchdog.status().starts_with("bites in"), "{}", watchdog.status());
        write(&watchdog, 0, 0);
        assert!(watchdog.status().starts_with("stopped"), "{}", watchdog.status());
        watchdog.terminate();
        assert_eq!(*ends.0.lock().unwrap(), None);
    }
}
