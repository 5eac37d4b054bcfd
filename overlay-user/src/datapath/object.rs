//! The eBPF objects that this binary carries, or another one in the place of that for packets.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::Error;

/// Bytes with the alignment that the ELF parser needs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The ELF section with the features that an object was built without.
const SECTION: &str = "overlay.without";

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/overlay.bpf.o")));

static SERVICES: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/services.bpf.o")));

/// The bytes of the object with the programs at the socket.
///
/// # Errors
/// [`Error::NoObject`] in a build without an eBPF toolchain.
pub fn services() -> Result<&'static [u8], Error> {
    fit_to_carry(&SERVICES.0)
}

/// An object that can be loaded.
#[derive(Clone, Debug)]
pub struct ObjectFile {
    /// The ELF file.
    pub bytes: Cow<'static, [u8]>,
    /// The object's file, if it is not this binary's own, and the features that the object lacks;
    /// for people.
    pub note: Option<String>,
}

/// The bytes of the object that this binary carries.
///
/// # Errors
/// [`Error::NoObject`] in a build without an eBPF toolchain; [`Error::ForMeasuring`].
pub fn bytes() -> Result<&'static [u8], Error> {
    fit_to_carry(&OBJECT.0)
}

fn fit_to_carry(object: &[u8]) -> Result<&[u8], Error> {
    if object.is_empty() {
        return Err(Error::NoObject);
    }
    match without(object) {
        Some(without) => Err(Error::ForMeasuring(without)),
        None => Ok(object),
    }
}

/// The object in `file`, whatever it lacks, or the one that this binary carries.
///
/// # Errors
/// [`Error::ReadObject`]; as for [`bytes`].
pub fn read(file: Option<&Path>) -> Result<ObjectFile, Error> {
    let Some(path) = file else {
        return Ok(ObjectFile {
            bytes: Cow::Borrowed(bytes()?),
            note: None,
        });
    };
    let bytes = fs::read(path).map_err(|source| Error::ReadObject {
        path: path.to_owned(),
        source,
    })?;
    let mut note = format!("those of {} (--programs)", path.display());
    if let Some(without) = without(&bytes) {
        note += &format!(", for measuring only: built {without}");
    }
    Ok(ObjectFile {
        bytes: Cow::Owned(bytes),
        note: Some(note),
    })
}

/// The features that leave a check or a short cut out of an object (`overlay-ebpf/src/without.rs`),
/// if any is set. `None` for a file that is no ELF file, because loading such a file fails with a
/// better error.
fn without(object: &[u8]) -> Option<String> {
    use ::object::{Object as _, ObjectSection as _};
    let file = ::object::File::parse(object).ok()?;
    let names = file.section_by_name(SECTION)?.data().ok()?;
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let names: Vec<_> = names.map(String::from_utf8_lossy).collect();
    Some(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::object::write;
    use ::object::{Architecture, BinaryFormat, Endianness, SectionKind};

    fn elf(section: &str, content: &[u8]) -> Vec<u8> {
        let mut elf = write::Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let id = elf.add_section(Vec::new(), section.into(), SectionKind::ReadOnlyData);
        elf.append_section_data(id, content, 1);
        elf.write().expect("an ELF file")
    }

    #[test]
    fn an_object_says_what_it_was_built_without() {
        let names = b"without-counters\0without-inner-source\0";
        assert_eq!(
            without(&elf(SECTION, names)).as_deref(),
            Some("without-counters, without-inner-source")
        );
        assert_eq!(without(&elf("license", b"GPL\0")), None);
        assert_eq!(without(b"nonsense"), None);
    }

    #[test]
    fn no_agent_carries_what_lacks_a_check() {
        let lacking = elf(SECTION, b"without-inner-source\0");
        let refused = fit_to_carry(&lacking).expect_err("refused").to_string();
        assert!(refused.contains("built without-inner-source"), "{refused}");
        assert!(matches!(fit_to_carry(&[]), Err(Error::NoObject)));
        assert!(fit_to_carry(&elf("license", b"GPL\0")).is_ok());
    }

    #[test]
    fn every_feature_that_leaves_something_out_is_noted() {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../overlay-ebpf");
        let text = |file| fs::read_to_string(programs.join(file)).expect("a file");
        let (manifest, notes) = (text("Cargo.toml"), text("src/without.rs"));
        let features = manifest.lines().filter_map(|line| line.split_once(" = "));
        let mut left_out = features.filter(|(name, _)| name.starts_with("without-"));
        assert!(left_out.clone().count() > 0, "no such feature");
        assert!(left_out.all(|(name, _)| notes.contains(&format!("\"{name}\""))));
    }

    #[test]
    fn a_file_is_taken_as_it_is_and_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("overlay.o");
        fs::write(&path, elf(SECTION, b"without-counters\0")).expect("a file");
        let note = read(Some(&path)).expect("an object").note.expect("a note");
        assert!(note.contains("overlay.o (--programs)"), "{note}");
        assert!(note.ends_with("built without-counters"), "{note}");
    }
}
