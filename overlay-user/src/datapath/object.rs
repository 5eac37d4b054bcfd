//! The eBPF object that this binary carries, or another one.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::Error;

/// Aligned as the ELF parser wants it.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// Where an object says what it was built without.
const SECTION: &str = "overlay.without";

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/overlay.bpf.o")));

/// An object that can be loaded.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The ELF file.
    pub bytes: Cow<'static, [u8]>,
    /// Where it is from, if it is not this binary's own, and what it lacks; for people.
    pub note: Option<String>,
}

/// The bytes of the object that this binary carries.
///
/// # Errors
/// [`Error::NoObject`] in a build without an eBPF toolchain; [`Error::ForMeasuring`].
pub fn bytes() -> Result<&'static [u8], Error> {
    if OBJECT.0.is_empty() {
        return Err(Error::NoObject);
    }
    match without(&OBJECT.0) {
        Some(without) => Err(Error::ForMeasuring(without)),
        None => Ok(&OBJECT.0),
    }
}

/// The object in `file`, whatever it lacks, or the one that this binary carries.
///
/// # Errors
/// [`Error::ReadObject`]; as for [`bytes`].
pub fn read(file: Option<&Path>) -> Result<Programs, Error> {
    let Some(path) = file else {
        return Ok(Programs {
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
    Ok(Programs {
        bytes: Cow::Owned(bytes),
        note: Some(note),
    })
}

/// The features that leave a check or a short cut out of an object (`overlay-ebpf/src/without.rs`), if any is set.
/// What is no ELF file has none; loading it will tell.
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
    use ::object::write::Object;
    use ::object::{Architecture, BinaryFormat, Endianness, SectionKind};

    fn elf(section: &str, content: &[u8]) -> Vec<u8> {
        let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
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
    fn a_file_is_taken_as_it_is_and_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("overlay.o");
        fs::write(&path, elf(SECTION, b"without-counters\0")).expect("a file");
        let note = read(Some(&path)).expect("an object").note.expect("a note");
        assert!(note.contains("overlay.o (--programs)"), "{note}");
        assert!(note.ends_with("built without-counters"), "{note}");
    }
}
