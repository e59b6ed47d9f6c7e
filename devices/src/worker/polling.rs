//! Looking for a driver's buffers without a doorbell, in the middle of a burst (`docs/decisions/005-polling-in-a-burst.md`).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::core::Core;
use crate::engine::Engine;

/// How long looking goes on without a find.
const PATIENCE: Duration = Duration::from_micros(300);
/// How long it goes on before the device's other events are heard.
const SLICE: Duration = Duration::from_millis(1);
/// How many bursts are left alone at most after one in which nothing was found.
const MAX_PAUSE: u32 = 64;

/// Whether the thread of a device looks for buffers by itself, and whether it should.
pub(super) struct Polling {
    /// There is a processor for that besides the one that runs the guest.
    has_processor: bool,
    is_on: bool,
    has_found: bool,
    /// How many times it is not to begin. Where others need the processors, it costs the guest more than it saves.
    pause: u32,
    /// How many times that was at the last failure.
    last_pause: u32,
}

impl Polling {
    pub(super) fn new() -> Self {
        Self {
            has_processor: thread::available_parallelism().is_ok_and(|count| count.get() > 1),
            is_on: false,
            has_found: false,
            pause: 0,
            last_pause: 0,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether a burst may be polled, should there be one now.
    pub(super) fn may_start(&self) -> bool {
        self.has_processor && self.pause == 0
    }

    /// There is a burst, and it is not to be polled.
    pub(super) fn pass_over(&mut self) {
        self.pause = self.pause.saturating_sub(1);
    }

    /// Begins, with the next slice, unless it has begun.
    pub(super) fn start(&mut self) {
        self.has_found &= self.is_on;
        self.is_on = true;
    }

    /// Serves the polled queues for a while. It is over when they have had nothing for some time.
    pub(super) fn slice(&mut self, engine: &Arc<Engine>) {
        let memory = Arc::clone(engine.core().memory());
        let mut places = Vec::new();
        engine.serve(|core| core.poll(&mut places));
        let start = Instant::now();
        let mut last = start;
        loop {
            let now = Instant::now();
            if places.iter().any(|place| place.has_news(&memory)) {
                engine.serve(|core| core.poll(&mut places));
                self.has_found = true;
                last = now;
            } else if places.is_empty() || now.saturating_duration_since(last) > PATIENCE {
                return self.stop(engine);
            }
            if now.saturating_duration_since(start) > SLICE {
                return;
            }
            std::hint::spin_loop();
        }
    }

    fn stop(&mut self, engine: &Arc<Engine>) {
        engine.serve(Core::stop_polling);
        self.is_on = false;
        self.last_pause = match self.has_found {
            true => 0,
            false => self.last_pause.saturating_mul(2).clamp(1, MAX_PAUSE),
        };
        self.pause = self.last_pause;
    }
}
