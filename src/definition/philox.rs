//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
//! "Parallel Random Numbers: As Easy as 1, 2, 3" (SC11).
//!
//! A token needs no generator state: its random bits are a function of the row's seed, its position in the
//! sequence and the round of the draw. Rows share nothing, a call can be repeated, and a captured GPU graph draws fresh numbers at
//! every replay because the positions live in memory.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32.
#[inline]
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The 64 random bits of one draw: a token may take several, each a round of its own.
///
/// Counter words: position low, position high, round, 0. Key words: seed low, seed high.
/// The result is the first two output words, low word first.
#[inline]
pub(crate) fn random(seed: u64, position: u64, round: u32) -> u64 {
    let out = philox4x32_10(
        [position as u32, (position >> 32) as u32, round, 0],
        [seed as u32, (seed >> 32) as u32],
    );
    u64::from(out[0]) | u64::from(out[1]) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123 (`kat_vectors`, `philox4x32 10`).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_input_matters() {
        let base = random(1, 2, 0);
        for other in [
            random(2, 2, 0),
            random(1 | 1 << 32, 2, 0),
            random(1, 3, 0),
            random(1, 2 | 1 << 32, 0),
            random(1, 2, 1),
        ] {
            assert_ne!(base, other);
        }
    }
}
