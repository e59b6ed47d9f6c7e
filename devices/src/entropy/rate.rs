//! A limit on bytes per second: a bucket that fills at the rate and holds a burst.

use std::time::{Duration, Instant};

const SECOND: u128 = 1_000_000_000;

/// The bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// The most bytes at once.
    burst: u64,
    bytes: u64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket. Both numbers are at least 1.
    pub(super) fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let (rate, burst) = (rate.max(1), burst.max(1));
        Self { rate, burst, bytes: burst, filled: now }
    }

    /// How many of `wanted` bytes may be taken now; else after what time all of them, or a burst, may be.
    pub(super) fn available(&mut self, wanted: u32, now: Instant) -> Result<u32, Duration> {
        let since = now.saturating_duration_since(self.filled).as_nanos();
        let grown = since.saturating_mul(self.rate.into()).checked_div(SECOND).unwrap_or(0);
        if grown > 0 {
            let grown = u64::try_from(grown).unwrap_or(u64::MAX);
            self.bytes = self.bytes.saturating_add(grown).min(self.burst);
            // What is less than a byte stays in the time that is not counted yet.
            let counted = u128::from(grown).saturating_mul(SECOND).checked_div(self.rate.into()).unwrap_or(0);
            let counted = Duration::from_nanos(u64::try_from(counted).unwrap_or(u64::MAX));
            self.filled =
                if self.bytes == self.burst { now } else { self.filled.checked_add(counted).unwrap_or(now) };
        }
        let goal = u64::from(wanted).min(self.burst);
        let Some(missing) = goal.checked_sub(self.bytes).filter(|missing| *missing > 0) else {
            return Ok(u32::try_from(goal).unwrap_or(u32::MAX));
        };
        let wait = u128::from(missing).saturating_mul(SECOND).div_ceil(u128::from(self.rate));
        Err(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// So many bytes were taken.
    pub(super) fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_comes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 64, start);
        assert_eq!(bucket.available(64, start), Ok(64));
        bucket.take(64);
        assert_eq!(bucket.available(10, start), Err(Duration::from_millis(10)));
        assert_eq!(bucket.available(10, start + Duration::from_millis(10)), Ok(10));
        bucket.take(10);
        assert_eq!(bucket.available(500, start + Duration::from_secs(9)), Ok(64), "never more than a burst");
    }

    #[test]
    fn over_a_long_time_it_is_exactly_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(7, 8, start);
        let mut taken = 0;
        for millisecond in 0..10_000 {
            if let Ok(count) = bucket.available(8, start + Duration::from_millis(millisecond)) {
                bucket.take(count.into());
                taken += count;
            }
        }
        assert!((70..=78).contains(&taken), "{taken}");
    }
}
