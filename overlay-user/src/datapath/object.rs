//! The eBPF object that this binary carries, or another one.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::Error;

/// Aligned as the ELF parser wants it.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/overlay.bpf.o")));

/// The object's bytes.
///
/// # Errors
/// [`Error::NoObject`] in a build without an eBPF toolchain.
pub fn bytes() -> Result<&'static [u8], Error> {
    if OBJECT.0.is_empty() {
        Err(Error::NoObject)
    } else {
        Ok(&OBJECT.0)
    }
}

/// The bytes of the object in `file`, or of the one that this binary carries.
///
/// # Errors
/// [`Error::ReadObject`]; as for [`bytes`].
pub fn read(file: Option<&Path>) -> Result<Cow<'static, [u8]>, Error> {
    let Some(path) = file else {
        return bytes().map(Cow::Borrowed);
    };
    let read = fs::read(path).map_err(|source| Error::ReadObject {
        path: path.to_owned(),
        source,
    });
    read.map(Cow::Owned)
}
