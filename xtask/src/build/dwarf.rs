//! Objects without the compiler's debug information. bpf-linker makes BTF from DWARF and leaves
//! both in the object; aya and the kernel read the BTF only.

use anyhow::{Context as _, Result};
use object::build::elf::Builder;

/// The same object without DWARF: its sections, and the relocations of those.
///
/// # Errors
/// When `object` is no ELF file.
pub fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(object).context("read the eBPF object")?;
    for section in &mut elf.sections {
        section.delete = is_dwarf(&section.name);
    }
    let mut stripped = Vec::new();
    elf.write(&mut stripped)
        .context("write the eBPF object without debug information")?;
    Ok(stripped)
}

fn is_dwarf(section: &[u8]) -> bool {
    let section = section.strip_prefix(b".rel").unwrap_or(section);
    section.starts_with(b".debug_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::File;
    use object::write::{Object, Relocation, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind};
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolFlags};
    use object::{RelocationTarget, SymbolKind, SymbolScope};

    /// `R_BPF_64_64`.
    const MAP: u32 = 1;

    /// An object with a program, its BTF and its DWARF, all of which refer to a map.
    fn unstripped() -> Vec<u8> {
        let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let maps = elf.add_section(Vec::new(), b".maps".into(), SectionKind::Data);
        elf.append_section_data(maps, &[0; 32], 8);
        let map = elf.add_symbol(Symbol {
            name: b"ov_map".into(),
            value: 0,
            size: 32,
            kind: SymbolKind::Data,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(maps),
            flags: SymbolFlags::None,
        });
        for (name, kind) in [
            ("classifier", SectionKind::Text),
            (".debug_info", SectionKind::Debug),
            (".BTF", SectionKind::Other),
            (".debug_str", SectionKind::Debug),
            (".BTF.ext", SectionKind::Other),
        ] {
            let section = elf.add_section(Vec::new(), name.into(), kind);
            elf.append_section_data(section, name.repeat(4).as_bytes(), 8);
            let relocation = Relocation {
                offset: 8,
                symbol: map,
                addend: 0,
                flags: RelocationFlags::Elf { r_type: MAP },
            };
            elf.add_relocation(section, relocation)
                .expect("a relocation");
        }
        elf.write().expect("an object")
    }

    #[test]
    fn debug_information_goes_and_btf_stays() {
        let before = unstripped();
        let after = strip(&before).expect("an object");
        let (before, after) = (
            File::parse(&*before).expect("ELF"),
            File::parse(&*after).expect("ELF"),
        );
        let map = after.symbol_by_name("ov_map").expect("the map's symbol");
        for section in before.sections() {
            let name = section.name().expect("a name");
            let kept = after.section_by_name(name);
            if name.contains(".debug_") {
                assert!(kept.is_none(), "{name} is left");
            } else if !name.contains("tab") {
                let kept = kept.unwrap_or_else(|| panic!("{name} is gone"));
                assert_eq!(kept.data().ok(), section.data().ok(), "{name}");
                let relocations: Vec<_> = kept.relocations().collect();
                assert_eq!(
                    relocations.len(),
                    section.relocations().count(),
                    "relocations of {name}"
                );
                for (offset, relocation) in relocations {
                    assert_eq!(offset, 8, "{name}");
                    let target = RelocationTarget::Symbol(map.index());
                    assert_eq!(relocation.target(), target, "{name}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(strip(b"nonsense").is_err());
    }
}
