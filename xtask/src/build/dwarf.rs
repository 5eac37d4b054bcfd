//! Removes the compiler's debug information from objects. bpf-linker makes BTF from DWARF and
//! leaves both in the object; aya and the kernel read the BTF only.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without DWARF: without its sections, and the relocations of these sections.
///
/// # Errors
/// When `object` is no ELF file.
pub fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(object).context("read the eBPF object")?;
    for section in &mut elf.sections {
        section.delete = is_dwarf(&section.name);
    }
    // LLVM writes the names of sections and of symbols to one table, the builder to two.
    let is_names = |data: &SectionData<'_>| matches!(data, SectionData::SectionString);
    if !elf.sections.iter().any(|section| is_names(&section.data)) {
        let names = elf.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
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

    /// An object with a program, its BTF and its DWARF, which all refer to a map.
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

    /// The same object with one table for the names of sections and symbols, as LLVM writes it.
    fn with_one_table(mut elf: Vec<u8>) -> Vec<u8> {
        /// Positions in the headers of files (64 bit) and of sections.
        const NAMES_OF_SECTIONS: usize = 62;
        const OFFSET: usize = 24;
        const SIZE: usize = 32;
        let long = |elf: &[u8], at: usize| {
            u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes")) as usize
        };
        let file = File::parse(&*elf).expect("ELF");
        let index = |name| file.section_by_name(name).expect("a table").index().0;
        let (symbols, sections) = (index(".strtab"), index(".shstrtab"));
        let (headers, count) = (long(&elf, 40), usize::from(elf[60]));
        let header = |index: usize| headers + index * 64;
        let table = |elf: &[u8], index| {
            let at = long(elf, header(index) + OFFSET);
            elf[at..at + long(elf, header(index) + SIZE)].to_vec()
        };
        let (of_symbols, of_sections) = (table(&elf, symbols), table(&elf, sections));
        for index in 1..count {
            let name = &mut elf[header(index)..header(index) + 4];
            let place = u32::from_le_bytes(name.try_into().expect("four bytes"));
            name.copy_from_slice(&(place + of_symbols.len() as u32).to_le_bytes());
        }
        let both = [of_symbols, of_sections].concat();
        let at = elf.len() as u64;
        elf[header(symbols) + OFFSET..][..8].copy_from_slice(&at.to_le_bytes());
        elf[header(symbols) + SIZE..][..8].copy_from_slice(&(both.len() as u64).to_le_bytes());
        elf[NAMES_OF_SECTIONS..][..2].copy_from_slice(&(symbols as u16).to_le_bytes());
        assert_eq!(sections + 1, count, "the table is not the last section");
        elf[60] -= 1;
        elf.extend(both);
        elf
    }

    #[test]
    fn debug_information_goes_and_btf_stays() {
        for before in [unstripped(), with_one_table(unstripped())] {
            loses_only_dwarf(&before);
        }
    }

    fn loses_only_dwarf(before: &[u8]) {
        let after = strip(before).expect("an object");
        let (before, after) = (
            File::parse(before).expect("ELF"),
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
