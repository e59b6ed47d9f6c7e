//! How kernels come into memory: from every packing, at random places, and from one cache for many at once.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};

use boot::Image;
use tests::bzimage::{self, Flaw};
use tests::guest::{Boot, Console, Distribution};
use tests::{Command, Machine, SOON, Status};

/// What packs a kernel, as the kernel's own build calls it, and what mote calls that. All but gzip, in which the
/// distribution packs it.
const PACKERS: [(&str, &[&str]); 6] = [
    ("xz", &["xz", "--check=crc32", "--x86", "--lzma2=preset=1"]),
    ("lzma", &["xz", "--format=lzma", "-1"]),
    ("lzo", &["lzop", "-3"]),
    ("lz4", &["lz4", "-l", "-1"]),
    ("zstd", &["zstd", "-1"]),
    ("bzip2", &["bzip2", "-1"]),
];

/// Where a bzImage's header says how long the boot sector's part is, how long the rest, and where in that the payload is.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("boots-{name}"))
}

/// Puts another payload into a bzImage: packed bytes, and what the kernel's build appends, their unpacked size.
fn with_payload(image: &[u8], packed: &[u8], unpacked: usize) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let protected = (usize::from(image[SETUP_SECTS]) + 1) * 512;
    let payload = protected + word(PAYLOAD_OFFSET);
    let mut new = [&image[..payload], packed, &(unpacked as u32).to_le_bytes()].concat();
    let length = (new.len() - payload) as u32;
    new.resize(new.len().next_multiple_of(16), 0);
    let size = ((new.len() - protected) / 16) as u32;
    new[SYSSIZE..SYSSIZE + 4].copy_from_slice(&size.to_le_bytes());
    new[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
    new
}

/// Runs bytes through a program.
fn pipe(argv: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut program = Program::new(argv[0]);
    program.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.spawn().unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{argv:?}");
    output.stdout
}

/// Alpine's kernel, packed anew.
fn repacked(name: &str, packer: &[&str]) -> PathBuf {
    let [kernel, _] = Boot::new(Distribution::Alpine, Console::Hvc0).files();
    let mut unpacked = Vec::new();
    let is_packed = Image::open(&kernel).unwrap().unpack(&mut |piece| {
        unpacked.extend_from_slice(piece);
        Ok(())
    });
    assert!(is_packed.unwrap());
    let image = fs::read(&kernel).unwrap();
    let path = scratch(&format!("{name}.bzImage"));
    fs::write(&path, with_payload(&image, &pipe(packer, &unpacked), unpacked.len())).unwrap();
    path
}

/// Where a running kernel is: its text, virtually and physically, and its direct map of all memory.
#[derive(Debug)]
struct Places {
    text: u64,
    physical: u64,
    direct: u64,
}

/// What a guest says of its own kernel. A socket of the kernel's lies in the direct map of all memory.
const ASK: &str = "echo 1 >/proc/sys/kernel/kptr_restrict; grep ' _text$' /proc/kallsyms; \
                   grep 'Kernel code' /proc/iomem; grep -c . /proc/modules; head -c 16 /dev/hwrng | wc -c; \
                   sed -n '2s/ .*//p' /proc/net/netlink";

impl Places {
    fn of(said: &str) -> Self {
        /// What the direct map's address is a multiple of; the guest has less memory than this.
        const STEP: u64 = 1 << 30;
        let mut lines = said.lines();
        let mut next = || lines.next().unwrap_or_else(|| panic!("{said}"));
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{said}"));
        let text = hex(next().split(' ').next().unwrap());
        let physical = hex(next().trim().split('-').next().unwrap());
        assert_ne!(next(), "0", "no module is loaded");
        assert_eq!(next().trim(), "16", "the module of the entropy device gives nothing");
        let socket = hex(next().trim());
        assert!(socket > 0xffff_8000_0000_0000, "{said}");
        Self { text, physical, direct: socket / STEP * STEP }
    }
}

#[test]
fn linux_boots_from_every_packing_each_time_somewhere_else() {
    let machine = Machine::here();
    let mut all = Vec::new();
    for (name, packer) in PACKERS {
        let kernel = machine.file(repacked(name, packer));
        let boot = Boot::new(Distribution::Alpine, Console::Hvc0).kernel(&kernel);
        let guest = boot.option("--log", "debug").option("--kernel-cache", "none").start(machine);
        all.push(Places::of(&guest.ask(ASK)));
        let way = format!("unpacked ({name}), at a random physical and virtual address");
        guest.session.expect_message(&way, SOON);
        guest.session.expect_message(" lock prefixes taken", SOON);
    }
    // There are about 60 places: of six that two agree is likely, that four do is not.
    let different = |of: fn(&Places) -> u64| {
        let mut places: Vec<u64> = all.iter().map(of).collect();
        places.sort_unstable();
        places.dedup();
        places.len()
    };
    let places = [different(|it| it.text), different(|it| it.physical), different(|it| it.direct)];
    assert!(places.iter().all(|count| *count >= 3), "{places:?} different places of {all:x?}");
}

/// A kernel of a few instructions as an ELF file of this many bytes, linked as Linux is, in a gzip payload.
fn packed_guest(code: &[u8], size: usize) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
    const CODE: usize = 0x1000;
    let mut file = vec![0; size];
    // What does not pack well takes time to unpack and to write.
    let mut noise = 1_u32;
    for byte in &mut file {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (noise >> 24) as u8;
    }
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0; 120]);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &(ADDRESS + CODE as u64).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0]);
    put(64, &[1, 0, 0, 0, 7, 0, 0, 0]);
    let length = size as u64;
    put(72, &[0, KERNEL_MAP + ADDRESS, ADDRESS, length, length, 0x20_0000].map(u64::to_le_bytes).concat());
    put(CODE, code);
    let mut image = bzimage::wrap(&[], Flaw::None);
    let payload = image.len() - 1024;
    image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&(payload as u32).to_le_bytes());
    let packed = pipe(&["gzip", "-1"], &file);
    // gzip has the size in its own format already.
    with_payload(&image, &packed[..packed.len() - 4], size)
}

/// Prints a byte to the serial port, and powers off.
const PRINTS: [u8; 15] =
    [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];

fn run(kernel: &Path, options: &[&str]) -> Command {
    let command = Machine::local().mote(&["run", "--vdev", "ser8250", "--kernel"]).arg(kernel);
    command.args(options)
}

#[test]
fn many_that_start_at_once_share_one_cache() {
    const TOGETHER: usize = 8;
    let machine = Machine::local();
    let kernel = scratch("shared.bzImage");
    fs::write(&kernel, packed_guest(&PRINTS, 0xf_0000)).unwrap();
    let kernel = machine.file(&kernel);
    for round in 0..3 {
        let cache = format!("/tmp/mote-boots-cache-{}-{round}", std::process::id());
        let command = run(&kernel, &["--log", "debug", "--kernel-cache", &cache]);
        let sessions: Vec<_> = (0..TOGETHER).map(|_| machine.spawn(&command)).collect();
        let ends: Vec<_> = sessions.iter().map(|session| session.wait(SOON)).collect();
        for end in &ends {
            assert_eq!((end.status, end.text().as_str()), (Status::Code(0), "!"), "{}", end.messages());
            assert!(!end.messages().contains("of no use"), "{}", end.messages());
        }
        let again = machine.run(&command);
        assert!(again.messages().contains("unpacked (gzip), from the cache"), "{}", again.messages());
        assert_eq!((again.status, again.text().as_str()), (Status::Code(0), "!"));
        let files = machine.run(&Command::shell("ls $0; rm -r $0").arg(&cache)).text();
        assert!(files.lines().count() == 1 && files.trim_end().ends_with(".kernel"), "{files}");
    }
}

#[test]
fn a_timeline_has_the_phases_in_their_order() {
    let machine = Machine::local();
    let kernel = scratch("timeline.bzImage");
    // To port 0x80: 0x41.
    let code = [&[0xb0, 0x41, 0xe6, 0x80], &PRINTS[..]].concat();
    fs::write(&kernel, packed_guest(&code, 0x4000)).unwrap();
    let kernel = machine.file(&kernel);
    let messages = |format| machine.run(&run(&kernel, &["--kernel-cache", "none", format])).messages();
    const PHASES: [&str; 15] = [
        "exec",
        "options read",
        "files open",
        "KVM checked",
        "memory mapped",
        "VM made",
        "vdevs in place",
        "vCPUs made",
        "all loaded",
        "guest configured",
        "first KVM_RUN",
        "first exit",
        "guest tells 0x41",
        "first console byte",
        "guest ended",
    ];
    let text = messages("--timeline");
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" ms ")).collect();
    let at = |phase: &str| lines.iter().position(|line| line.ends_with(&format!("  {phase}")));
    let places: Vec<_> = PHASES.iter().map(|phase| at(phase)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    assert!(at("kernel in memory: unpacked (gzip)") < at("all loaded"), "{text}");
    let json = messages("--timeline=json");
    let json = json.lines().last().unwrap_or_default();
    assert!(json.starts_with(r#"[{"moment":"exec","ns":0},"#) && json.ends_with("}]"), "{json}");
}
