//! The eBPF object that this binary carries.

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
