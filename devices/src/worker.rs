//! The thread of a virtio device: waits for doorbells, the host's descriptors and deadlines, and serves the device.

mod polling;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::{error, warn};
use vmm_sys_util::eventfd::EventFd;

use crate::core::{LATE, Late};
use crate::engine::Engine;
use crate::thread::named;
use crate::virtio::{Interest, Wake, Watch};
use crate::worker::polling::Polling;

/// A thread that starts when there is something to wait for.
pub(crate) struct Worker {
    name: &'static str,
    control: EventFd,
    is_stopping: AtomicBool,
    thread: Mutex<Thread>,
}

enum Thread {
    NotStarted,
    Running(JoinHandle<()>),
    Stopped,
}

impl Worker {
    pub(crate) fn new(name: &'static str, control: EventFd) -> Self {
        Self { name, control, is_stopping: AtomicBool::new(false), thread: Mutex::new(Thread::NotStarted) }
    }

    /// Starts the thread if it does not run yet.
    pub(crate) fn start(&self, engine: &Arc<Engine>) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*thread, Thread::NotStarted) {
            return;
        }
        let engine = Arc::clone(engine);
        match named(self.name).spawn(move || run(&engine)) {
            Ok(handle) => *thread = Thread::Running(handle),
            Err(error) => {
                error!("{}: the host gives no thread, so the device stands still: {error}", self.name)
            }
        }
    }

    /// Has the thread look at what the device wants.
    pub(crate) fn wake(&self, engine: &Arc<Engine>) {
        self.start(engine);
        // A full counter wakes just as well.
        let _ = self.control.write(1);
    }

    /// Stops the thread and waits for its end.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        let _ = self.control.write(1);
        // The lock is given up before the wait: the thread takes it to wake itself.
        let thread = {
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *thread, Thread::Stopped)
        };
        if let Thread::Running(handle) = thread
            && handle.join().is_err()
        {
            error!("{}: the device's thread panicked", self.name);
        }
    }
}

/// What an epoll entry stands for. A watch carries its token, which is small.
const CONTROL: u32 = u32::MAX;
const QUEUE: u32 = 1 << 16;

struct Loop {
    engine: Arc<Engine>,
    watched: Vec<Watch>,
    deadline: Option<Instant>,
    /// When to come back for decisions to interrupt.
    late: Option<Instant>,
    polling: Polling,
}

fn run(engine: &Arc<Engine>) {
    let name = engine.worker().name;
    let started = EventManager::new_with_capacity(16).map(|mut manager| {
        let id = manager.add_subscriber(Loop {
            engine: Arc::clone(engine),
            watched: Vec::new(),
            deadline: None,
            late: None,
            polling: Polling::new(),
        });
        (manager, id)
    });
    let (mut manager, id) = match started {
        Ok(started) => started,
        Err(error) => return error!("{name}: no event loop, so the device stands still: {error:?}"),
    };
    while !engine.worker().is_stopping.load(Ordering::Acquire) {
        let Ok(this) = manager.subscriber_mut(id) else { return };
        let deadline = [this.deadline, this.late].into_iter().flatten().min();
        let wait = if this.polling.is_on() { 0 } else { timeout(deadline) };
        if let Err(error) = manager.run_with_timeout(wait) {
            return error!("{name}: the event loop failed, so the device stands still: {error:?}");
        }
        let Ok(this) = manager.subscriber_mut(id) else { return };
        if this.polling.is_on() {
            this.polling.slice(engine);
        }
        // One queue that is polled does not put off the decisions about others.
        if this.late.take_if(|at| *at <= Instant::now()).is_some() {
            let late = engine.core().decide_late(this.polling.may_start());
            match late {
                Late::Poll => this.polling.start(),
                Late::Again { is_burst: true } => this.polling.pass_over(),
                Late::Again { is_burst: false } | Late::Done => {}
            }
            if late != Late::Done {
                this.late = Instant::now().checked_add(LATE);
            }
        }
        if this.deadline.take_if(|at| *at <= Instant::now()).is_some() {
            // What the device wants then is taken up by the loop.
            engine.serve(|core| core.serve(Wake::Deadline));
        }
    }
}

/// Milliseconds to wait, rounded up so that a deadline has come when the wait ends; -1 without one.
fn timeout(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now()).saturating_add(Duration::from_micros(999));
    i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
}

impl Loop {
    /// Takes up what the device wants to wait for.
    fn take_up(&mut self, ops: &mut EventOps<'_>) {
        let Some(wants) = self.engine.core().take_wants() else { return };
        if let Some(watch) = wants.watch {
            self.watch(watch, ops);
        }
        if wants.drops_deadline {
            self.deadline = None;
        }
        if let Some(after) = wants.deadline {
            self.deadline = Instant::now().checked_add(after);
        }
        if wants.late {
            self.late = Instant::now().checked_add(LATE);
        }
        if wants.again {
            // What is left then comes back by way of the event loop, so that others get their turn.
            for queue in 0..self.engine.queue_count() {
                self.engine.serve(|core| core.serve_more(queue));
            }
        }
    }

    fn watch(&mut self, watch: Vec<Watch>, ops: &mut EventOps<'_>) {
        for old in self.watched.drain(..).filter(|old| !watch.contains(old)) {
            // The device may have closed it already, and then epoll has forgotten it.
            let _ = ops.remove(events(&old));
        }
        for new in &watch {
            match ops.add(events(new)) {
                // Already there: it is watched as it was.
                Ok(()) | Err(event_manager::Error::FdAlreadyRegistered) => {}
                Err(error) => warn!("{}: cannot wait for a descriptor: {error:?}", self.engine.worker().name),
            }
        }
        self.watched = watch;
    }
}

fn events(watch: &Watch) -> Events {
    let set = match watch.interest {
        Interest::Read => EventSet::IN,
        Interest::Write => EventSet::OUT,
    };
    Events::with_data_raw(watch.fd, watch.token, set)
}

impl MutEventSubscriber for Loop {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let engine = Arc::clone(&self.engine);
        let control = Events::with_data(&engine.worker().control, CONTROL, EventSet::IN);
        let doorbells = engine
            .worker_doorbells()
            .map(|(queue, event)| Events::with_data(event, QUEUE | u32::from(queue), EventSet::IN));
        for event in std::iter::once(control).chain(doorbells) {
            if let Err(error) = ops.add(event) {
                error!("{}: cannot wait for a doorbell: {error:?}", engine.worker().name);
            }
        }
        self.take_up(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let engine = Arc::clone(&self.engine);
        match events.data() {
            CONTROL => {
                let _ = engine.worker().control.read();
            }
            data if data & QUEUE != 0 => {
                let queue = u16::try_from(data & !QUEUE).unwrap_or(u16::MAX);
                if let Some(event) = engine.doorbell(queue) {
                    let _ = event.read();
                }
                engine.core().serve(Wake::Queue(queue));
            }
            token => engine.core().serve(Wake::Host(token)),
        }
        self.take_up(ops);
    }
}
