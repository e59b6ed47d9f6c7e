//! What is said of configurations that are wrong: each error once, word for word.

use super::tests::parse;

#[track_caller]
fn says(text: &str, expected: &str) {
    match parse(text) {
        Err(error) => assert_eq!(error.to_string(), expected, "\n{text}"),
        Ok(config) => panic!("{text}\nis understood: {config:#?}"),
    }
}

#[test]
fn text_that_is_none() {
    says(
        "load \"a\nb\"",
        "[f:1] a quote is not closed; to go on in the next line, end this one with a backslash",
    );
    says("load a\u{1}b", "[f:1] character 0x01 is no part of a word");
}

#[test]
fn options_that_there_are_not() {
    says("load k\nvdv x", "[f:2] there is no option 'vdv' (did you mean 'vdev'?)");
    says("frobnicate", "[f:1] there is no option 'frobnicate'");
    says(
        "load k vdev virtio-entropy\n\n legcay",
        "[f:3] there is no option 'legcay' (did you mean 'legacy'?)",
    );
    says(
        "load k vdev virtio-entropy colour red",
        "[f:1] there is no option 'colour', neither of a VM nor of vdev virtio-entropy",
    );
    says("loc 0x3f8", "[f:1] 'loc' belongs to a vdev: write it after 'vdev TYPE'");
    says(
        "vdev ser8250 ram 64m cpu ram 64m vdev pvpanic step 5",
        "[f:1] there is no option 'step', neither of a VM nor of vdev pvpanic",
    );
    says("sched 8", "[f:1] 'sched' belongs to a cpu: write it after 'cpu'");
    says(
        "vdev ser8250 sched 8",
        "[f:1] vdev ser8250: mote has not qvm's option 'sched': the threads of vdevs are scheduled as mote itself is",
    );
    says("load k\nstate-dir x", "[f:2] there is no option 'state-dir' (did you mean 'set state-dir'?)");
    says("kernel vmlinuz", "[f:1] there is no option 'kernel' (did you mean 'load FILE'?)");
    says("initrd initramfs", "[f:1] there is no option 'initrd' (did you mean 'initrd load FILE'?)");
    says("guest.qvmconf", "[f:1] there is no option 'guest.qvmconf' (did you mean '@guest.qvmconf'?)");
    says("Cargo.toml", "[f:1] there is no option 'Cargo.toml' (did you mean 'load Cargo.toml'?)");
    says("memory 1g", "[f:1] there is no option 'memory' (did you mean 'ram LENGTH'?)");
}

#[test]
fn options_of_qvm_that_mote_has_not() {
    let no = |word: &str, text: &str, reason: &str| {
        says(text, &format!("[f:1] mote does not support '{word}': {reason}"));
    };
    no("pass", "pass loc 0x1000", "there is no pass-through of the host's devices");
    no("usb pass", "usb pass loc 0x1000", "there is no pass-through of the host's devices");
    no("safety", "safety none", "no part of mote is certified");
    no("user", "user nobody", "start mote as the user that it is to run as");
    no("debug", "debug all", "use 'logger debug stderr', or gdb on a dump");
    no("cluster", "cpu cluster big", "Linux names no clusters; use 'runmask'");
    no("partition", "cpu partition p", "put mote into a cgroup");
    no("fdt load", "fdt load x.dtb", "device trees are ARM's; a PC's guest has ACPI");
    no("set fdt-dump-file", "set fdt-dump-file x", "device trees are ARM's; a PC's guest has ACPI");
    no("$asinfo_start{a}", "$asinfo_start{a}", "the host has no QNX system page");
    no(
        "$asinfo_start{a},$asinfo_length{a}",
        "ram $asinfo_start{a},$asinfo_length{a}",
        "the host has no QNX system page",
    );
    no("@more", "@more", "files are named on the command line, several if need be");
    no(
        "unsupported instruction ignore",
        "unsupported instruction ignore",
        "KVM emulates what it can; where it cannot, it stops the guest for good (abort)",
    );
    no(
        "unsupported reference fail",
        "unsupported reference fail",
        "a PC has no bus errors; use ignore (all ones) or abort",
    );
    says(
        "vdev virtio-net",
        "[f:1] vdev virtio-net: mote has not this vdev of qvm's: there is no network yet",
    );
}

#[test]
fn vdevs_and_variables_of_qvm_that_mote_has_not() {
    let absent = |kind: &str, instead: &str| {
        says(
            &format!("vdev {kind}"),
            &format!("[f:1] vdev {kind}: mote has not this vdev of qvm's: {instead}"),
        );
    };
    absent("8259", "the machine has no PIC, interrupts go to the I/O APIC");
    absent("gic", "it is an interrupt controller of ARM");
    absent("hpet", "guests have kvmclock and the TSC deadline timer");
    absent("pci", "the PCI bus is always there");
    absent("pl011", "it is a serial port of ARM; ser8250 is the PC's");
    absent("shmem", "there is no shared memory yet");
    absent("smmu", "it is an IOMMU of ARM");
    absent("trace", "docs/writing-a-vdev.md has an example of its own");
    absent("virtio-blk", "there is no block device yet; an initrd can hold a root file system");
    absent("virtio-gpu", "there is no graphics");
    absent("virtio-input", "there is no graphics");
    absent("wdt-sp805", "it is a watchdog of ARM; wdt-ib700 is the PC's");
    let no = |variable: &str, reason: &str| {
        let expected = format!("[f:1] mote does not support 'set {variable}': {reason}");
        says(&format!("set {variable} x"), &expected);
    };
    no("exit-on-halt", "a guest that halts waits for an interrupt");
    no("grow-heap", "memory is the host's to give");
    no("legacy-free", "ACPI tells the guest what there is");
    no("message-block-timeout", "no device of mote waits for the host");
    no("posted-interrupts", "KVM uses them where the host has them");
    no("slog-buffer", "Linux's syslog has its own buffers");
    no("vdev-message-block-timeout", "no device of mote waits for the host");
    no("virtual-interrupts", "KVM uses them where the host has them");
}

#[test]
fn options_of_vdevs_of_qvm_that_mote_has_not() {
    let no = |words: &str, kind: &str, option: &str, reason: &str| {
        let expected = format!("[f:1] vdev {kind}: mote has not qvm's option '{option}': {reason}");
        says(&format!("vdev {kind} {words}"), &expected);
    };
    no("batch 100", "ser8250", "batch", "output goes out as soon as the guest has written it");
    no("hostvector 3", "ioapic", "hostvector", "there is no pass-through of the host's devices");
    no("intr ioapic:8", "mc146818", "intr", "this vdev raises no interrupt");
    no("sched 8r", "virtio-console", "sched", "the threads of vdevs are scheduled as mote itself is");
}

#[test]
fn places_that_there_are_not() {
    let no = |kind: &str, place: &str, problem: &str| {
        let expected = format!("[f:1] vdev {kind}: loc={place}: {problem}");
        says(&format!("load k vdev {kind} loc {place}"), &expected);
    };
    no("ser8250", "0x10000", "ports end at 0xffff");
    no("ser8250", "com1", "a location is mem:ADDRESS, io:PORT or pci:BUS:DEVICE.FUNCTION");
    no("virtio-entropy", "5.0", "a PCI vdev has loc=pci:BUS:DEVICE.FUNCTION, such as pci:0:5.0");
    no("virtio-entropy", "pci:0:20.0", "a bus has devices 0 to 1f with functions 0 to 7");
    no("virtio-entropy", "pci:1:2.0", "there is only bus 0");
    no(
        "virtio-entropy",
        "pci:1af4/1005",
        "a device of the host is named so for pass-through, which mote has not",
    );
    no("pvpanic", "0x510", "it is at io:0x505 and nowhere else; leave 'loc' out");
}

#[test]
fn arguments_that_are_missing_or_wrong() {
    says("load", "[f:1] 'load' needs an argument: load [ADDRESS,]FILE");
    says("vdev ser8250\nlog error", "[f:2] 'log' needs an argument: log FILTER[,FILTER]... DEST");
    says("load k system late", "[f:1] 'system late' must be the first option");
    says(
        "system ../x",
        "[f:1] system '../x': a name is made of letters, digits, '-', '_' and '.', as files are named by it",
    );
    says("load a\nload b", "[f:2] mote takes one kernel, and has 'a' already");
    says("initrd load a initrd load b", "[f:1] mote takes one initrd, and has 'a' already");
    says(
        "data load 0x100000,x",
        "[f:1] 'load 0x100000,x' refers to guest memory: write it after 'ram' and 'rom'",
    );
    says("ram 64m data load x", "[f:1] load 'x': data needs its address: data load ADDRESS,FILE");
    says("load \"\"", "[f:1] load '': there is no file");
    says(
        "ram 64m load 0x1000000,k",
        "[f:1] load '0x1000000,k': mote places the kernel and the initrd by itself; leave the address out",
    );
    says(
        "ram 64m acpi load 0x1000,t",
        "[f:1] load '0x1000,t': mote places ACPI tables by itself; leave the address out",
    );
    says(
        "initr load x",
        "[f:1] load 'initr': a file to load is of type initrd, data or acpi, or of none (did you mean 'initrd'?)",
    );
    says(
        "cpu sched high",
        "[f:1] sched 'high': a priority is a number and r (round robin), f (first in, first out) or o (the host's usual way)",
    );
    says(
        "cpu sched 8,9s",
        "[f:1] sched '8,9s': Linux has no sporadic scheduling; use a priority and r, f or o",
    );
    says("cpu sched 8x", "[f:1] sched '8x': the letter is r, f or o");
    says("cpu sched 100f", "[f:1] sched '100f': Linux has real-time priorities from 1 to 99");
    says(
        "cpu runmask 0-3",
        "[f:1] runmask '0-3': the host's processors are numbered from 0 to 1023, as in 0,2,3",
    );
    says(
        "logger eror stderr",
        "[f:1] logger 'eror': a filter is fatal, internal, error, warn, info, debug or verbose (did you mean 'error'?)",
    );
    says(
        "logger error sdterr",
        "[f:1] logger 'sdterr': messages go to stdout, stderr, slog or none (did you mean 'stderr'?)",
    );
    says("dump \"|\"", "[f:1] dump '|': there is no command");
    says(
        "unsupported refernce abort",
        "[f:1] unsupported 'refernce': this is none of instruction, reference and register (did you mean 'reference'?)",
    );
    says(
        "unsupported register abrot",
        "[f:1] unsupported 'abrot': a policy is abort, fail or ignore (did you mean 'abort'?)",
    );
    says("load k set", "[f:1] 'set' needs an argument: set VARIABLE VALUE");
    says(
        "set pci-confg both",
        "[f:1] there is no variable 'pci-confg' (did you mean 'pci-config'?); 'mote run set ?' lists them",
    );
    says("set pci-config usb", "[f:1] set 'pci-config usb': this is none of ecam, ports and both");
    says(
        "set escape meta-x",
        "[f:1] set 'escape meta-x': an escape key is written ctrl-a, ^a or none; a to z and one of @ [ ] \\ ^ _ are possible",
    );
    says(
        "set default-vdevs maybe",
        "[f:1] set 'default-vdevs maybe': a boolean is on or off, yes or no, true or false, 1 or 0",
    );
    says(
        "set power-button-timeout soon",
        "[f:1] set 'power-button-timeout soon': this is no number of seconds",
    );
    says("", "there is no kernel to load: give --kernel FILE, or 'load FILE' in a configuration");
}

#[test]
fn memory_that_cannot_be_so() {
    says(
        "load k ram 4096",
        "[f:1] ram '4096': say whether this is hexadecimal or decimal: 0x, 0d or a suffix K, M, G or T",
    );
    says("load k ram much", "[f:1] ram 'much': a size is a number and a suffix K, M, G or T, such as 256M");
    says("load k ram 99999999T", "[f:1] ram '99999999T': this is more than can be addressed");
    says("load k ram 0", "[f:1] ram 0: it has no bytes");
    says("load k\nram 64m,0", "[f:2] ram 0x4000000,0: it has no bytes");
    says("load k\nram 0x10001", "[f:2] ram 65537: it must begin and end on a page, at multiples of 4K");
    says(
        "load k ram 0,1023T ram 4096T",
        "[f:1] ram 0x0,1023T: the devices are from 3G to 4G; there is room for a rom from 0xff000000 on alone",
    );
    says("load k ram 5000T", "[f:1] ram 5000T: this is more than can be addressed");
    says(
        "load k ram 0,64m\nram 32m,64m",
        "[f:2] ram 0x2000000 to 0x6000000 meets ram 0x0 to 0x4000000 [f:1]",
    );
    says(
        "load k ram 0,64m\nreserve loc 16m,1m",
        "[f:1] ram 0x0 to 0x4000000 meets reserve 0x1000000 to 0x1100000 [f:2]",
    );
    says("load k ram 16m,64m", "[f:1] ram 0x1000000 to 0x5000000: RAM begins at 0");
    says(
        "load k ram 0,512k ram 1m,64m",
        "[f:1] ram 0x0 to 0x80000: below 1M a PC has RAM up to 0xa0000, no more and no less",
    );
    says(
        "load k ram 0,640k ram 2m,64m",
        "[f:1] ram 0x200000 to 0x4200000: a PC has RAM from 1M on: ram 1m,LENGTH",
    );
    says("load k rom 1m,64m", "ram: there is none");
    says(
        "load k ram 0,640k\nreserve loc 0xe0000,64k ram 1m,64m",
        "[f:2] reserve loc 0xe0000,64K: mote puts the ACPI tables at 0xe0000 to 0x100000",
    );
    says(
        "load k reserve mem:0xa0000,64k ram 1m",
        "[f:1] reserve 'mem:0xa0000,64k': a place follows: reserve loc ADDRESS,LENGTH",
    );
    says("load k reserve loc io:0x3f8,8", "[f:1] reserve 'io:0x3f8,8': only memory (mem:) can be reserved");
    says(
        "load k reserve loc 64k",
        "[f:1] reserve '64k': an address and a length are needed, as in 0xa0000,0x20000",
    );
}

#[test]
fn vdevs_that_cannot_be_so() {
    says("load k vdev toaster", "[f:1] there is no vdev 'toaster'; 'mote vdevs' lists them");
    says(
        "load k\nvdev virtio-entrpoy",
        "[f:2] there is no vdev 'virtio-entrpoy' (did you mean 'virtio-entropy'?); 'mote vdevs' lists them",
    );
    says(
        "load k vdev ser8250 name a vdev ser8250\nname a",
        "[f:2] vdev ser8250: name=a: another vdev has that name",
    );
    says("load k vdev ser8250 name \"a b\"", "[f:1] vdev ser8250: name=a b: a name has no spaces in it");
    says(
        "load k vdev ser8250\nloc\n760",
        "[f:3] vdev ser8250: loc=760: say whether this is hexadecimal or decimal: 0x, 0d or a suffix K, M, G or T",
    );
    says(
        "load k vdev ser8250 loc pci:0:3.0",
        "[f:1] vdev ser8250: loc=pci:0:3.0: a platform vdev is at I/O ports, such as io:0x3f8",
    );
    says(
        "load k vdev virtio-entropy loc io:0x300",
        "[f:1] vdev virtio-entropy: loc=io:0x300: a virtio vdev is on PCI or in memory",
    );
    says(
        "load k vdev virtio-entropy loc mem:0xf8000000",
        "[f:1] vdev virtio-entropy: loc: a vdev in memory needs an interrupt: intr ioapic:LINE",
    );
    says(
        "load k vdev virtio-entropy loc mem:0xf8000000 intr ioapic:12\ntransitional",
        "[f:2] vdev virtio-entropy: transitional: a vdev in memory is modern or legacy, not both",
    );
    says(
        "load k vdev virtio-entropy intr gic:40",
        "[f:1] vdev virtio-entropy: intr=gic:40: there is no interrupt controller of that name; the I/O APIC is 'ioapic'",
    );
    says(
        "load k vdev ser8250 intr ioapic:24",
        "[f:1] vdev ser8250: intr=ioapic:24: the I/O APIC has lines 0 to 23",
    );
    says(
        "load k vdev ser8250 intr apic",
        "[f:1] vdev ser8250: intr=apic: an interrupt is PIC:LINE, such as ioapic:12",
    );
    says(
        "load k vdev ioapic loc 0xf8000000",
        "[f:1] vdev ioapic: loc=0xf8000000: it is at mem:0xfec00000 and nowhere else; leave 'loc' out",
    );
    says(
        "load k vdev ser8250 log debug,eror stderr",
        "[f:1] log 'debug,eror stderr': 'eror': a filter is fatal, internal, error, warn, info, debug or verbose (did you mean 'error'?)",
    );
    says(
        "load k vdev ser8250 log \"error\" nowhere",
        "[f:1] log 'error nowhere': 'nowhere': messages go to stdout, stderr, slog or none",
    );
}
