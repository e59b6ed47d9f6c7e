//! A cache that is missing, broken, full, or used by many at once.

#![expect(clippy::single_range_in_vec_init, reason = "memory of one range is meant")]

use std::os::unix::fs::PermissionsExt;
use std::thread;

use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::image::tests::{bzimage_of, image};
use crate::sample::{self, LINKED, MIB, laid_out, pack, read, relocatable};
use crate::{CommandLine, Compressor, Image, Kernel, Method, Note, Plan};

fn sample_image() -> Image {
    sample::image(Compressor::Zstd, &relocatable())
}

fn directory() -> TempDir {
    TempDir::new().unwrap()
}

/// Loads `image` with `cache` and without random addresses, and looks at what came into memory.
fn load(image: Image, cache: &Cache) -> Kernel {
    let line = CommandLine::new(&[], "").unwrap();
    let plan = Plan::new(image, None, line, &[0..64 * MIB], &[]).unwrap().cached(cache.clone());
    let memory = sample::memory(64 * MIB);
    let kernel = plan.load_kernel(&memory).unwrap();
    assert!(read(&memory, LINKED, 0x8000) == laid_out());
    kernel
}

const UNPACKED: Method = Method::Unpacked(Compressor::Zstd);
const CACHED: Method = Method::Cached(Compressor::Zstd);

/// The only entry.
fn entry(directory: &TempDir) -> PathBuf {
    let mut files = files(directory);
    assert_eq!(files.len(), 1);
    files.remove(0)
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(directory.as_path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_unpacked_once_comes_from_the_cache_the_next_time() {
    let directory = directory();
    let cache = Cache::open(directory.as_path().join("made/when/needed"));
    let first = load(sample_image(), &cache);
    assert_eq!(first.method, UNPACKED);
    let second = load(sample_image(), &cache);
    assert_eq!(second.method, CACHED);
    assert_eq!(second.entry, first.entry);
    assert!(first.notes.is_empty() && second.notes.is_empty());
    let made = fs::metadata(directory.as_path().join("made")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o700);
}

#[test]
fn relocations_come_with_the_kernel() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    let flat = |image: Image| {
        load(image, &cache);
        let input = Input::open(&entry(&directory)).unwrap();
        let key = Key::of(sample_image().input(), sample_image().payload().unwrap()).unwrap();
        Cached::read(input, &key).unwrap().unwrap().load(&sample::memory(64 * MIB), 0).unwrap()
    };
    let relocations = flat(sample_image()).relocations.unwrap();
    assert_eq!(relocations.quads, sample::QUADS.map(|address| address as u32));
    assert_eq!(relocations.words, sample::WORDS.map(|address| address as u32));
}

#[test]
fn that_there_are_no_relocations_is_kept_too() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    for _ in 0..2 {
        let line = CommandLine::new(&[], "").unwrap();
        let plan =
            Plan::new(sample::image(Compressor::Gzip, &sample::vmlinux()), None, line, &[0..64 * MIB], &[])
                .unwrap()
                .cached(cache.clone())
                .randomised([1, 2], &[]);
        let kernel = plan.load_kernel(&sample::memory(64 * MIB)).unwrap();
        assert_eq!(kernel.offsets.virtual_offset, None);
        assert!(matches!(kernel.notes.as_slice(), [Note::NoVirtualOffset(_)]), "{:?}", kernel.notes);
    }
}

#[test]
fn another_payload_is_another_entry() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    load(sample_image(), &cache);
    assert_eq!(
        load(sample::image(Compressor::Gzip, &relocatable()), &cache).method,
        Method::Unpacked(Compressor::Gzip)
    );
    assert_eq!(files(&directory).len(), 2);
}

#[test]
fn a_file_that_was_cut_off_or_changed_is_not_used_and_replaced() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    load(sample_image(), &cache);
    let entry = entry(&directory);
    let whole = fs::read(&entry).unwrap();
    let lengths = [0, 1, 15, 0x70, 0xfff, 0x1000, 0x2000, whole.len() - 1];
    let cut = lengths.map(|length| whole[..length].to_vec());
    let longer = [&whole[..], &[0]].concat();
    // Magic number, key, each number, digest, relocations.
    let changed =
        [0, 15, 0x10, 0x30, 0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68, 0x70, whole.len() - 1].map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
    for bytes in cut.into_iter().chain([longer]).chain(changed) {
        fs::write(&entry, &bytes).unwrap();
        let kernel = load(sample_image(), &cache);
        assert_eq!(kernel.method, UNPACKED, "{} bytes", bytes.len());
        assert!(kernel.notes.is_empty());
        assert!(fs::read(&entry).unwrap() == whole);
    }
    assert_eq!(load(sample_image(), &cache).method, CACHED);
}

#[test]
fn an_entry_that_others_may_write_is_not_used_and_said() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    load(sample_image(), &cache);
    fs::set_permissions(entry(&directory), fs::Permissions::from_mode(0o620)).unwrap();
    let kernel = load(sample_image(), &cache);
    assert_eq!(kernel.method, UNPACKED);
    assert!(matches!(kernel.notes.as_slice(), [Note::Cache(Error::CacheOwner { .. })]), "{:?}", kernel.notes);
    assert_eq!(load(sample_image(), &cache).method, CACHED, "it was replaced");
}

#[test]
fn a_cache_that_cannot_be_is_said_and_does_no_harm() {
    let file = TempFile::new().unwrap();
    let kernel = load(sample_image(), &Cache::open(file.as_path().join("cache")));
    assert_eq!(kernel.method, UNPACKED);
    assert!(matches!(kernel.notes.first(), Some(Note::Cache(Error::File { .. }))), "{:?}", kernel.notes);
}

#[test]
fn an_entry_that_needs_more_memory_than_the_header_asks_for_is_not_used() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    load(sample_image(), &cache);
    let mut bytes = bzimage_of(&pack(Compressor::Zstd, &relocatable()));
    bytes[0x260..0x264].copy_from_slice(&0x7000u32.to_le_bytes());
    let line = CommandLine::new(&[], "").unwrap();
    let plan = Plan::new(image(&bytes).unwrap(), None, line, &[0..64 * MIB], &[]).unwrap().cached(cache);
    let error = plan.load_kernel(&sample::memory(64 * MIB)).unwrap_err();
    assert!(matches!(error, Error::Payload { compressor: Compressor::Zstd, .. }), "{error}");
}

#[test]
fn the_entry_that_was_not_used_for_longest_goes_first() {
    let directory = directory();
    let images = [Compressor::Gzip, Compressor::Lz4, Compressor::Xz];
    let size = {
        load(sample::image(images[0], &relocatable()), &Cache::open(directory.as_path()));
        fs::metadata(entry(&directory)).unwrap().len()
    };
    let cache = Cache::open(directory.as_path()).limited_to(size * 2 + 1);
    let method = |index: usize| {
        // Time stamps can be coarse.
        thread::sleep(Duration::from_millis(20));
        load(sample::image(images[index], &relocatable()), &cache).method
    };
    assert_eq!(method(1), Method::Unpacked(images[1]));
    assert_eq!(method(0), Method::Cached(images[0]));
    assert_eq!(method(2), Method::Unpacked(images[2]), "1 goes, since 0 was used after it");
    assert_eq!(files(&directory).len(), 2);
    assert_eq!(method(0), Method::Cached(images[0]));
    assert_eq!(method(1), Method::Unpacked(images[1]));
}

#[test]
fn what_is_larger_than_the_cache_is_not_kept() {
    let directory = directory();
    let cache = Cache::open(directory.as_path()).limited_to(1000);
    assert_eq!(load(sample_image(), &cache).method, UNPACKED);
    assert!(files(&directory).is_empty());
}

#[test]
fn files_of_others_are_left_alone() {
    let directory = directory();
    let others = ["notes.txt", "x.kernel", "y.tmp", &format!("{}.kernel.bak", "0".repeat(64))]
        .map(|name| directory.as_path().join(name));
    for path in &others {
        fs::write(path, vec![0; 5000]).unwrap();
    }
    let cache = Cache::open(directory.as_path()).limited_to(0x10000);
    load(sample_image(), &cache);
    assert!(others.iter().all(|path| path.exists()));
    assert_eq!(load(sample_image(), &cache).method, CACHED);
}

#[test]
fn what_somebody_else_is_writing_is_left_to_them_unless_they_are_gone() {
    let directory = directory();
    let cache = Cache::open(directory.as_path());
    load(sample_image(), &cache);
    let unfinished = entry(&directory).with_extension(UNFINISHED);
    fs::remove_file(entry(&directory)).unwrap();
    fs::write(&unfinished, b"half").unwrap();
    assert_eq!(load(sample_image(), &cache).method, UNPACKED);
    assert_eq!(files(&directory), std::slice::from_ref(&unfinished));
    let old = SystemTime::now() - ABANDONED * 2;
    File::options().write(true).open(&unfinished).unwrap().set_modified(old).unwrap();
    assert_eq!(load(sample_image(), &cache).method, UNPACKED);
    assert_eq!(load(sample_image(), &cache).method, CACHED);
}

#[test]
fn many_at_once_all_get_the_kernel() {
    let directory = directory();
    // Room for one of the two kernels, so that they evict each other all the time.
    let size = {
        load(sample_image(), &Cache::open(directory.as_path()));
        fs::metadata(entry(&directory)).unwrap().len()
    };
    let cache = Cache::open(directory.as_path()).limited_to(size + 1);
    thread::scope(|scope| {
        for index in 0..8 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..20 {
                    let compressor =
                        if (index + round) % 2 == 0 { Compressor::Zstd } else { Compressor::Gzip };
                    let kernel = load(sample::image(compressor, &relocatable()), cache);
                    assert!(kernel.notes.is_empty(), "{:?}", kernel.notes);
                }
            });
        }
    });
    assert!(files(&directory).iter().all(|path| kind(path) == Some(ENTRY)), "nothing was left behind");
}
