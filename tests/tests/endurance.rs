//! What takes minutes in the nested rig: much output, and whether interrupts come for it that nobody wants.

use tests::Machine;
use tests::guest::{Boot, Console, Distribution};

/// Prints 100,000 lines, which are 200,000 buffers. Linux polls for each. Of 100,000 interrupts 99,900 for which there is
/// nothing to do make it say "nobody cared", and shut the line.
#[track_caller]
fn a_hundred_thousand_lines(words: &str) {
    let guest = Boot::new(Distribution::Alpine, Console::Hvc0).words(words).start(Machine::here());
    guest.session.send("seq 100000; echo a''ll\n");
    let text = guest.session.stream("all\r\n");
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=100_000), "{} numbers", numbers.len());
    assert_eq!(guest.ask("dmesg | grep -c 'nobody cared' || true").trim(), "0");
    guest.power_off();
}

#[test]
fn a_hundred_thousand_lines_on_intx_are_no_interrupts_that_nobody_cares_for() {
    a_hundred_thousand_lines("pci=nomsi");
}

#[test]
fn a_hundred_thousand_lines_on_msix_are_no_interrupts_that_nobody_cares_for() {
    a_hundred_thousand_lines("");
}
