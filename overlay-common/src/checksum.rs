//! The Internet checksum (RFC 1071), over 32-bit words in memory order.
//!
//! The ones' complement sum does not depend on byte order as long as the result is stored in the
//! order in which the words were read (RFC 1071, section 2 (B)), so nothing is swapped here.

/// The folded ones' complement sum of whole words.
#[inline(always)]
fn sum(words: &[u32]) -> u16 {
    let mut total = 0_u64;
    for word in words {
        total += u64::from(*word);
    }
    fold(total)
}

/// Folds a sum of 16- or 32-bit words to 16 bits.
#[inline(always)]
fn fold(total: u64) -> u16 {
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    total as u16
}

/// The checksum of a header whose checksum field holds zero, to be stored in memory order.
#[inline(always)]
pub fn of(words: &[u32]) -> u16 {
    !sum(words)
}

/// Whether a header that holds its checksum is intact.
#[inline(always)]
pub fn is_valid(words: &[u32]) -> bool {
    sum(words) == 0xffff
}

/// The checksum of a header after 16-bit fields changed from zero to `values` (RFC 1624).
///
/// `checksum` and `values` in memory order.
#[inline(always)]
pub fn adjust<const N: usize>(checksum: u16, values: [u16; N]) -> u16 {
    let mut total = u64::from(!checksum);
    for value in values {
        total += u64::from(value);
    }
    !fold(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_header_verifies() {
        // The worked example of the IPv4 header checksum: 0xb861.
        let bytes: [u8; 20] = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        let mut words: [u32; 5] = bytemuck::cast(bytes);
        assert!(is_valid(&words));
        words[2] ^= 1;
        assert!(!is_valid(&words));
    }

    /// RFC 1071, section 1, implemented by its definition: carries are added until none is left.
    #[test]
    fn folding_adds_every_carry() {
        let mut totals = vec![0_u64];
        for bits in 1..=40 {
            let power = 1_u64 << bits;
            totals.extend([
                power - 1,
                power,
                power + 1,
                power | 0xffff,
                power | 0xffff_0000,
            ]);
        }
        totals.extend((1..=20).map(|words| words * 0xffff_ffff));
        // A total with one more carry than any header's sum.
        totals.push(0x1_0000_ffff_ffff);
        for total in totals {
            let mut wanted = total;
            while wanted > 0xffff {
                wanted = wanted % 0x1_0000 + wanted / 0x1_0000;
            }
            assert_eq!(u64::from(fold(total)), wanted, "{total:#x}");
        }
    }

    #[test]
    fn adjusting_equals_computing_anew() {
        let mut words: [u32; 5] = [0x45, 0, 0x1140, 0x0101_a8c0, 0x0201_a8c0];
        let before = of(&words);
        for (length, id) in [(1500_u16, 7_u16), (65535, 65535), (50, 0)] {
            words[0] = 0x45 | u32::from(length) << 16;
            words[1] = u32::from(id);
            assert_eq!(adjust(before, [length, id]), of(&words));
        }
    }
}
