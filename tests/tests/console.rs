//! The console as a person meets it: the terminal given back, the keys, paste, resize, ports, the first lines.

use tests::guest::{Boot, Console, Distribution, Guest};
use tests::{Command, LATE, Machine, SOON, Status};

fn alpine() -> Boot {
    Boot::new(Distribution::Alpine, Console::Hvc0)
}

/// The guest at its shell, on a terminal.
fn on_terminal() -> Guest {
    alpine().terminal(24, 80).start(Machine::here())
}

/// Starts mote under a shell that prints the terminal's settings before and after, and waits for the guest's shell.
fn with_settings(options: &str) -> (Guest, String) {
    let machine = Machine::here();
    let boot = alpine();
    let [kernel, initramfs] = boot.files().map(|path| machine.file(path));
    // Settings that no program makes by itself, to see that they are kept.
    let script = format!(
        r#"stty -echoctl intr ^X; stty -g; "$0" run --kernel "$1" --initrd "$2" --cmdline quiet {options}
        echo mote-status $?; for i in 1 2 3 4 5 6 7 8 9 10; do now=$(stty -g); echo "$now"; sleep 0.2; done"#
    );
    let command = Command::shell(&script).arg(machine.file(tests::paths::mote())).arg(kernel).arg(initramfs);
    let guest = boot.start_by(machine, &command.terminal(24, 80).env("TERM", "linux"));
    let printed = String::from_utf8_lossy(&guest.session.output()).into_owned();
    let before = printed.lines().next().unwrap_or_default().trim().to_owned();
    assert!(before.contains(':'), "{printed}");
    (guest, before)
}

/// The terminal is as it was; the guardian of a mote that was killed may need a moment.
#[track_caller]
fn expect_settings(guest: &Guest, before: &str) {
    let text = guest.session.wait(LATE).text();
    assert_eq!(text.trim_end().lines().last().unwrap_or_default().trim(), before, "{text}");
}

#[test]
fn the_escape_key_and_x_cut_the_power_and_give_the_terminal_back() {
    let (guest, before) = with_settings("");
    guest.session.send("\x01x");
    guest.session.expect("mote-status 3\r\n", SOON);
    expect_settings(&guest, &before);
}

#[test]
fn the_escape_key_and_r_end_the_run_as_a_reset() {
    let (guest, before) = with_settings("");
    guest.session.send("\x01r");
    guest.session.expect("mote-status 0\r\n", SOON);
    expect_settings(&guest, &before);
}

#[test]
fn even_sigkill_gives_the_terminal_back() {
    for (signal, status) in [("KILL", 137), ("SEGV", 139), ("ABRT", 134), ("TERM", 3), ("HUP", 3)] {
        let (guest, before) = with_settings("");
        let kill = format!("kill -{signal} $(pidof mote | tr ' ' '\\n' | sort -n | head -n 1)");
        Machine::here().run(&Command::shell(&kill));
        guest.session.expect(&format!("mote-status {status}\r\n"), SOON);
        expect_settings(&guest, &before);
    }
}

#[test]
fn the_menu_is_printed_on_request_and_the_escape_key_can_be_sent() {
    let guest = on_terminal();
    guest.session.send("\x01?");
    guest.session.expect("Ctrl-a x  quit", SOON);
    // The shell's line editor takes Ctrl-a to the start of the line.
    guest.session.send("ho done''\x01aec");
    guest.session.send("\r");
    guest.session.expect("done\r\n", SOON);
    guest.session.send("poweroff -f\r");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn another_escape_key_leaves_ctrl_a_alone() {
    let guest = alpine().terminal(24, 80).option("--escape", "^]").start(Machine::here());
    guest.session.send("ho still''here\x01ec\r");
    guest.session.expect("stillhere\r\n", SOON);
    guest.session.send("\x1dx");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(3));
}

#[test]
fn the_size_follows_the_terminal() {
    let guest = on_terminal();
    guest.session.send("stty size\r");
    guest.session.expect("24 80\r\n", SOON);
    // The kernel tells the terminal's foreground processes.
    let listener =
        r#"sh -c "trap 'echo resized \$(stty size)' WINCH; echo list''ening; while :; do sleep 1; done""#;
    guest.session.send(format!("{listener}\r"));
    guest.session.expect("listening\r\n", SOON);
    guest.session.resize(50, 132);
    guest.session.expect("resized 50 132\r\n", SOON);
    guest.session.send("\x03");
    guest.session.expect("mote-guest# ", SOON);
    guest.session.send("poweroff -f\r");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn an_editor_works_and_is_resized() {
    let guest = on_terminal();
    guest.session.send("vi /tmp/text\r");
    // The last line of the screen has the file's name.
    guest.session.expect("/tmp/text", SOON);
    guest.session.send("ihello from vi");
    guest.session.resize(30, 100);
    guest.session.send("\x1b");
    // Escape alone, and then what would else be a key's sequence.
    guest.session.expect("- /tmp/text [Modified]", SOON);
    guest.session.send(":wq\r");
    guest.session.expect("mote-guest# ", SOON);
    guest.session.send("cat /tmp/text\r");
    guest.session.expect("\nhello from vi\r\n", SOON);
    guest.session.send("poweroff -f\r");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn a_paste_of_100_kilobytes_arrives_whole() {
    let guest = on_terminal();
    // Lines, since a terminal's line discipline keeps 4095 bytes of each at most.
    let line = "0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ!\n";
    let lines = 100_000 / line.len();
    let text = line.repeat(lines);
    guest
        .session
        .send("stty -echo; cat >/tmp/paste; stty echo; wc -c </tmp/paste; uniq /tmp/paste | wc -l\r");
    guest.session.expect("\r\n", SOON);
    guest.session.send(&text);
    guest.session.send("\x04");
    guest.session.expect(&format!("{}\r\n", text.len()), LATE);
    guest.session.expect("1\r\n", SOON);
    guest.session.send("poweroff -f\r");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn output_waits_for_a_reader_that_stops_and_nothing_is_lost() {
    let guest = alpine().start(Machine::here());
    guest.session.hold();
    guest.session.send("seq 100000 120000; echo a''ll\n");
    guest.session.release();
    let text = guest.session.stream("all\r\n");
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(numbers.iter().copied().eq(100_000..=120_000), "{} numbers", numbers.len());
    guest.power_off();
}

#[test]
fn the_end_of_input_leaves_the_guest_running() {
    let guest = alpine().start(Machine::here());
    guest.session.send("sleep 2; echo still''here; poweroff -f\n");
    guest.session.close_input();
    guest.session.expect("stillhere\r\n", SOON);
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn a_second_console_is_a_terminal_of_the_host() {
    let machine = Machine::here();
    let vdev = "virtio-console,console=second,hostdev=pty:/tmp/mote-hvc1";
    let guest = alpine().option("--vdev", "virtio-entropy").option("--vdev", vdev).start(machine);
    guest.ask("(echo from the guest; read line; echo heard $line) </dev/hvc1 >/dev/hvc1 2>&1 & true");
    let user = machine.spawn(&Command::shell("exec 3<>/tmp/mote-hvc1; echo typed >&3; while read line <&3; do echo \"$line\"; case $line in heard*) break; esac; done"));
    let seen = user.wait(SOON).text();
    assert!(seen.contains("from the guest") && seen.contains("heard typed"), "{seen}");
    guest.power_off();
}

#[test]
fn a_named_port_carries_a_megabyte_each_way() {
    let machine = Machine::here();
    machine.run(&Command::shell("mkfifo /tmp/mote-in /tmp/mote-out"));
    let vdev = "virtio-console,port=org.mote.test,hostdev=</tmp/mote-in,hostdev=>/tmp/mote-out";
    let guest = alpine().option("--vdev", "virtio-entropy").option("--vdev", vdev).start(machine);
    let port = guest.ask("cd /sys/class/virtio-ports && grep -l org.mote.test */name | cut -d/ -f1");
    let port = port.trim();
    let sum = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
    let make = "head -c 1000000 /dev/urandom >/tmp/data; sha256sum /tmp/data";
    let sent = sum(machine.run(&Command::shell(make)).text());
    let writer = machine.spawn(&Command::shell("cat /tmp/data >/tmp/mote-in"));
    assert_eq!(sum(guest.ask(&format!("head -c 1000000 /dev/{port} | sha256sum"))), sent);
    writer.wait(SOON);
    let reader = machine.spawn(&Command::shell("head -c 1000000 /tmp/mote-out | sha256sum"));
    let sent = sum(guest.ask(&format!("{make}; cat /tmp/data >/dev/{port}")));
    assert_eq!(sum(reader.wait(SOON).text()), sent);
    guest.power_off();
}

#[test]
fn the_first_lines_are_shown_once() {
    for distribution in [Distribution::Alpine, Distribution::Debian] {
        let machine = Machine::here();
        // Without `quiet`, and from the start.
        let boot = Boot::new(distribution, Console::Hvc0).words("loglevel=7");
        let vdevs = ["virtio-entropy", "virtio-console", "ser8250,early"];
        let boot = vdevs.iter().fold(boot, |boot, vdev| boot.option("--vdev", vdev));
        let guest = boot.start(machine);
        let text = String::from_utf8_lossy(&guest.session.output()).into_owned();
        let count = |what: &str| text.matches(what).count();
        let of_both =
            ["Linux version 6", "bootconsole [uart8250] enabled", "bootconsole [uart8250] disabled"];
        assert_eq!(of_both.map(count), [1, 1, 1], "{text}");
        guest.power_off();
    }
}

#[test]
fn mote_is_suspended_as_a_job() {
    let machine = Machine::here();
    let boot = alpine();
    let [kernel, initramfs] = boot.files().map(|path| machine.file(path));
    // An interactive shell has job control.
    let shell = Command::new("sh").arg("-i").terminal(24, 80).env("TERM", "linux").env("PS1", "host# ");
    let _alone = machine.alone();
    let session = machine.spawn(&shell);
    session.expect("host# ", SOON);
    let mote = machine.file(tests::paths::mote());
    let line = format!(
        "{} run --kernel {} --initrd {} --cmdline quiet\r",
        mote.display(),
        kernel.display(),
        initramfs.display()
    );
    session.send(line);
    boot.wait_for_shell(&session);
    session.send("\x01z");
    session.expect("Stopped", SOON);
    session.expect("host# ", SOON);
    session.send("echo in the ho''st\r");
    session.expect("in the host\r\n", SOON);
    session.send("fg\r");
    session.send("\r");
    session.expect("mote-guest# ", SOON);
    session.send("echo in the gu''est\r");
    session.expect("in the guest\r\n", SOON);
    session.send("\x01x");
    session.expect("host# ", SOON);
    session.send("exit\r");
    assert_eq!(session.wait(SOON).status, Status::Code(3));
}
