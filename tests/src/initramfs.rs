//! Builds an initramfs from a list, without root: the list names device nodes and owners, the archive carries them.
//!
//! A list has one entry a line; `#` begins a comment, and `$NAME` stands for a value that the caller gives:
//!
//! ```text
//! dir     PATH MODE
//! node    PATH MODE MAJOR MINOR        a character device
//! link    PATH TARGET
//! file    PATH MODE SOURCE             a file of this machine
//! tree    IMAGE PATH [-PATH...]        a file or directory of an ext4 image, without what the last paths name, in
//!                                      which `*` stands for any one directory
//! modules SOURCE PATH NAME...          kernel modules by name, found below PATH in a directory or an image, with
//!                                      those they depend on: /lib/modules/NAME.ko, in order in /lib/modules/order
//! ```
//!
//! A later entry replaces an earlier one of the same path. The same list gives the same bytes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ext4_view::Ext4;
use flate2::read::GzDecoder;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// What an archive holds, by absolute path.
#[derive(Default)]
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
    modules: Vec<String>,
}

#[derive(Default)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    device: (u32, u32),
    data: Vec<u8>,
}

impl Initramfs {
    /// Reads a list. Values for its `$NAME`s come as pairs; relative sources start from the current directory.
    ///
    /// # Errors
    /// A line that is no entry, and sources that cannot be read; each names its line.
    pub fn from_list(list: &str, values: &[(String, String)]) -> io::Result<Self> {
        let mut archive = Self::default();
        for (number, line) in list.lines().enumerate() {
            let words = line.split_once('#').map_or(line, |(entry, _)| entry).split_whitespace();
            let words: Vec<String> = words.map(|word| substitute(word, values)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            archive.add(&words).map_err(|error| io::Error::other(format!("line {}: {error}", number + 1)))?;
        }
        archive.add_parents();
        Ok(archive)
    }

    fn add(&mut self, words: &[&str]) -> io::Result<()> {
        match words {
            [] => {}
            ["dir", path, mode] => {
                self.put(path, Entry { mode: DIRECTORY | octal(mode)?, ..Entry::default() })
            }
            ["node", path, mode, major, minor] => {
                let device = (number(major)?, number(minor)?);
                self.put(path, Entry { mode: CHARACTER | octal(mode)?, device, ..Entry::default() });
            }
            ["link", path, target] => {
                self.put(
                    path,
                    Entry { mode: SYMLINK | 0o777, data: target.as_bytes().into(), ..Entry::default() },
                );
            }
            ["file", path, mode, source] => {
                let data =
                    fs::read(source).map_err(|error| io::Error::other(format!("{source}: {error}")))?;
                self.put(path, Entry { mode: REGULAR | octal(mode)?, data, ..Entry::default() });
            }
            ["tree", image, path, without @ ..] => {
                let without: Vec<_> = without.iter().filter_map(|word| word.strip_prefix('-')).collect();
                self.add_tree(&open_image(image)?, path, &without)?;
            }
            ["modules", source, path, names @ ..] => {
                let modules = if Path::new(source).is_dir() {
                    modules_in_directory(&Path::new(source).join(path.trim_start_matches('/')))?
                } else {
                    modules_in_image(&open_image(source)?, path)?
                };
                for name in names {
                    self.add_module(&modules, name)?;
                }
            }
            _ => return Err(io::Error::other(format!("no such entry: {}", words.join(" ")))),
        }
        Ok(())
    }

    fn put(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.trim_end_matches('/').to_owned(), entry);
    }

    fn add_tree(&mut self, image: &Ext4, path: &str, without: &[&str]) -> io::Result<()> {
        if without.iter().any(|pattern| matches(pattern, path)) {
            return Ok(());
        }
        let facts = image.symlink_metadata(path).map_err(|error| named(path, error))?;
        let kind = facts.file_type();
        let data = if kind.is_symlink() {
            image.read_link(path).map_err(|error| named(path, error))?.as_ref().to_vec()
        } else if kind.is_regular_file() {
            image.read(path).map_err(|error| named(path, error))?
        } else {
            Vec::new()
        };
        let format = match (kind.is_dir(), kind.is_symlink(), kind.is_regular_file()) {
            (true, ..) => DIRECTORY,
            (_, true, _) => SYMLINK,
            (_, _, true) => REGULAR,
            // Devices, sockets and pipes of an image are of no use to another machine.
            _ => return Ok(()),
        };
        let mode = format | u32::from(facts.mode()) & 0o7777;
        if path != "/" {
            self.put(path, Entry { mode, owner: (facts.uid(), facts.gid()), data, ..Entry::default() });
        }
        if kind.is_dir() {
            for name in names_in(image, path)? {
                self.add_tree(image, &format!("{}/{name}", path.trim_end_matches('/')), without)?;
            }
        }
        Ok(())
    }

    /// Adds a module after those that it names in its `.modinfo`.
    fn add_module(&mut self, modules: &BTreeMap<String, Module<'_>>, name: &str) -> io::Result<()> {
        let name = name.replace('-', "_");
        let path = format!("/lib/modules/{name}.ko");
        if self.modules.contains(&path) {
            return Ok(());
        }
        let read = modules.get(&name).ok_or_else(|| io::Error::other(format!("no module {name}")))?;
        let data = read()?;
        for needed in depends(&data) {
            self.add_module(modules, &needed)?;
        }
        self.modules.push(path.clone());
        let order = self.modules.iter().flat_map(|path| [path.as_bytes(), b"\n"].concat()).collect();
        self.put(&path, Entry { mode: REGULAR | 0o644, data, ..Entry::default() });
        self.put("/lib/modules/order", Entry { mode: REGULAR | 0o644, data: order, ..Entry::default() });
        Ok(())
    }

    /// The kernel makes no directory that the archive does not hold.
    fn add_parents(&mut self) {
        let paths: Vec<String> = self.entries.keys().cloned().collect();
        for path in paths {
            for parent in
                Path::new(&path).ancestors().skip(1).filter_map(Path::to_str).filter(|path| *path != "/")
            {
                self.entries
                    .entry(parent.to_owned())
                    .or_insert(Entry { mode: DIRECTORY | 0o755, ..Entry::default() });
            }
        }
    }

    /// Writes the archive in cpio's `newc` format, directories before what is in them.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let end = Entry::default();
        let entries = self.entries.iter().map(|(path, entry)| (path.trim_start_matches('/'), entry));
        for (index, (path, entry)) in entries.chain([("TRAILER!!!", &end)]).enumerate() {
            let fields = [
                index + 1,
                entry.mode as usize,
                entry.owner.0 as usize,
                entry.owner.1 as usize,
                1, // links
                0, // time
                entry.data.len(),
                0, // major and minor of the device that the file is on
                0,
                entry.device.0 as usize,
                entry.device.1 as usize,
                path.len() + 1,
                0, // checksum
            ];
            let head: String = fields.iter().map(|field| format!("{field:08X}")).collect();
            let head = [b"070701", head.as_bytes(), path.as_bytes(), b"\0"].concat();
            for part in [&head, &entry.data] {
                to.write_all(part)?;
                to.write_all(&[0; 3][..part.len().next_multiple_of(4) - part.len()])?;
            }
        }
        Ok(())
    }
}

fn substitute(word: &str, values: &[(String, String)]) -> String {
    values.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("${name}"), value))
}

fn octal(text: &str) -> io::Result<u32> {
    u32::from_str_radix(text, 8).map_err(|error| named(text, error))
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(|error| named(text, error))
}

fn named(what: &str, error: impl Display) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

fn open_image(path: &str) -> io::Result<Ext4> {
    Ext4::load_from_path(path).map_err(|error| named(path, error))
}

fn names_in(image: &Ext4, path: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in image.read_dir(path).map_err(|error| named(path, error))? {
        let entry = entry.map_err(|error| named(path, error))?;
        let name = entry.file_name().as_str().map_err(|error| named(path, error))?.to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if pattern == "*" || pattern == name => {}
            _ => return false,
        }
    }
}

/// Reads a module, unpacked.
type Module<'a> = Box<dyn Fn() -> io::Result<Vec<u8>> + 'a>;

/// The name by which the kernel knows the module in a file, where it is one.
fn module_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(".ko.gz").or_else(|| file.strip_suffix(".ko"))?;
    Some(name.replace('-', "_"))
}

fn unpacked(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain)?;
    Ok(plain)
}

fn modules_in_directory(path: &Path) -> io::Result<BTreeMap<String, Module<'static>>> {
    let mut found: BTreeMap<String, Module<'_>> = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(|error| named(&path.to_string_lossy(), error))? {
        let file: PathBuf = entry?.path();
        if file.is_dir() && !file.is_symlink() {
            found.append(&mut modules_in_directory(&file)?);
        } else if let Some(name) = file.file_name().and_then(|name| module_name(&name.to_string_lossy())) {
            found.insert(name, Box::new(move || unpacked(fs::read(&file)?)));
        }
    }
    Ok(found)
}

fn modules_in_image(image: &Ext4, path: &str) -> io::Result<BTreeMap<String, Module<'static>>> {
    let mut found: BTreeMap<String, Module<'_>> = BTreeMap::new();
    for file in names_in(image, path)? {
        let at = format!("{}/{file}", path.trim_end_matches('/'));
        let facts = image.symlink_metadata(at.as_str()).map_err(|error| named(&at, error))?;
        if facts.is_dir() {
            found.append(&mut modules_in_image(image, &at)?);
        } else if let Some(name) = module_name(&file) {
            let image = image.clone();
            let read = move || unpacked(image.read(at.as_str()).map_err(|error| named(&at, error))?);
            found.insert(name, Box::new(read));
        }
    }
    Ok(found)
}

/// The names after `depends=` in a module's `.modinfo`, a section of strings that end in zeros.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(list: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        Initramfs::from_list(list, &[("HERE".into(), env!("CARGO_MANIFEST_DIR").into())])
            .unwrap()
            .write(&mut bytes)
            .unwrap();
        bytes
    }

    /// Path, mode and data of each entry, taken apart by the format's own rules.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&archive[6 + index * 8..14 + index * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let path = String::from_utf8(archive[110..110 + name - 1].to_vec()).unwrap();
            let data = (110 + name).next_multiple_of(4);
            if path == "TRAILER!!!" {
                assert_eq!(archive.len(), data);
                return entries;
            }
            entries.push((path, mode as u32, archive[data..data + size].to_vec()));
            archive = &archive[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_holds_what_its_list_names_parents_first() {
        let list =
            "link /bin/sh busybox # a comment\nnode /dev/console 600 5 1\nfile /a/b 755 $HERE/Cargo.toml";
        let modes: Vec<_> = entries(&bytes(list)).into_iter().map(|(path, mode, _)| (path, mode)).collect();
        let expected = [
            ("a", 0o040_755),
            ("a/b", 0o100_755),
            ("bin", 0o040_755),
            ("bin/sh", 0o120_777),
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
        ];
        assert_eq!(modes, expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(
            entries(&bytes(list))[1].2,
            fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap()
        );
        assert_eq!(entries(&bytes(list))[3].2, b"busybox");
    }

    #[test]
    fn a_later_entry_replaces_an_earlier_one() {
        assert_eq!(entries(&bytes("link /x a\nlink /x b")), [("x".to_owned(), 0o120_777, b"b".to_vec())]);
    }

    #[test]
    fn a_star_stands_for_one_directory() {
        assert!(matches("/lib/*/fs", "/lib/6.18/fs") && matches("/lib", "/lib"));
        assert!(
            !matches("/lib/*/fs", "/lib/fs") && !matches("/lib/*", "/lib/a/b") && !matches("/lib", "/lib64")
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        for line in ["dir /x", "node /x 600 5", "file /x 644 /nowhere", "dir /x 9", "what"] {
            let error = Initramfs::from_list(&format!("\n{line}"), &[]).map(|_| ()).unwrap_err();
            assert!(error.to_string().starts_with("line 2: "), "{error}");
        }
    }

    #[test]
    fn a_modules_needs_are_read_from_its_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=rng-core,virtio\0name=y\0"), ["rng-core", "virtio"]);
        assert!(depends(b"x\0depends=\0").is_empty());
        assert!(depends(b"x").is_empty());
    }
}
