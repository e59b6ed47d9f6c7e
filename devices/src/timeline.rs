//! The moments of a run, kept for who asks where the time goes. Until somebody does, a moment costs a look at a flag.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::vdev::{Access, Effect, Vdev};

/// A moment's name, and when it was.
pub type Moment = (Cow<'static, str>, Instant);

/// The port by which a guest tells how far it is, the one of a PC's power-on self-test.
pub const PORT: u16 = 0x80;
/// The moment when a stream first takes what the guest prints.
pub(crate) const FIRST_OUTPUT: &str = "first console byte";
/// The most moments that are kept: a guest can name 256.
const MOST: usize = 300;

static IS_ON: AtomicBool = AtomicBool::new(false);
static MOMENTS: Mutex<Vec<Moment>> = Mutex::new(Vec::new());

/// Keeps moments from now on. The first is the start of the process, which is taken to be as long ago as the
/// process has used the processor: call it early, before the process has waited for anything. (Linux tells the start
/// itself, but only to a hundredth of a second.)
pub fn start() {
    let now = Instant::now();
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    moments().push(("exec".into(), now.checked_sub(used).unwrap_or(now)));
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether moments are kept.
#[must_use]
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// This is the moment of this name, unless there was one before.
pub fn mark(name: impl Into<Cow<'static, str>>) {
    if is_on() {
        let (now, name) = (Instant::now(), name.into());
        let mut moments = moments();
        if moments.len() < MOST && moments.iter().all(|moment| moment.0 != name) {
            moments.push((name, now));
        }
    }
}

/// The moments so far, in their order.
#[must_use]
pub fn so_far() -> Vec<Moment> {
    let mut all = moments().clone();
    all.sort_by_key(|moment| moment.1);
    all
}

fn moments() -> std::sync::MutexGuard<'static, Vec<Moment>> {
    MOMENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is at [`PORT`] while moments are kept: each value is a moment when it is written for the first time.
pub struct Teller;

impl Teller {
    /// The teller, if there is somebody to tell.
    #[must_use]
    pub fn wanted() -> Option<Arc<dyn Vdev>> {
        is_on().then(|| Arc::new(Self) as Arc<dyn Vdev>)
    }
}

impl Vdev for Teller {
    fn name(&self) -> &str {
        "timeline"
    }

    fn vread(&self, _at: Access, _data: &mut [u8]) {}

    fn vwrite(&self, _at: Access, data: &[u8]) -> Effect {
        if let [value] = data {
            mark(format!("guest tells {value:#04x}"));
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    #[test]
    fn moments_are_kept_once_each_in_their_order_and_only_when_asked_for() {
        mark("too early");
        assert!(Teller::wanted().is_none());
        start();
        mark("one");
        let teller = Teller::wanted().unwrap();
        for data in [&[7][..], &[7], &[8, 9]] {
            assert_eq!(teller.vwrite(Access { region: Region::Port, offset: 0 }, data), Effect::None);
        }
        mark("one");
        let all = so_far();
        let names: Vec<_> = all.iter().map(|moment| moment.0.as_ref()).collect();
        // Other tests of this process may write to streams meanwhile.
        let names: Vec<_> = names.into_iter().filter(|name| *name != FIRST_OUTPUT).collect();
        assert_eq!(names, ["exec", "one", "guest tells 0x07"]);
        assert!(all.is_sorted_by_key(|moment| moment.1));
    }
}
