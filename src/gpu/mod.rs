//! What GPU backends share: the kernels' sources, their compilation at run time, the launch plan.
//!
//! The kernels are in `kernels/`, HIP C++ that NVRTC and hipRTC both read. They are embedded here, compiled
//! at first use for the GPU that is present, and kept on disk ([`cache`]).
//!
//! - [`launch`]: what runs with which grid and arguments, whatever the driver.
//! - [`rows`]: a sampler's rows in device memory.
//! - [`rtc`]: the run-time compilers, loaded when needed.
//! - [`cache`]: compiled code on disk.
//! - `cuda`: NVIDIA, on Candle's `cuda` device.
//! - `hip`: AMD, which Candle does not know.

mod cache;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "hip")]
pub(crate) mod hip;
mod launch;
#[cfg(test)]
mod plan_tests;
mod rows;
mod rtc;

pub(crate) use rows::State;

use crate::definition::weight::SLICE;

/// Threads of a block, as `BLOCK` in `kernels/block.h`, but of those that read slices.
pub(crate) const BLOCK: u32 = 512;

/// The same where rows are many.
pub(crate) const SMALL_BLOCK: u32 = 256;

/// What is compiled, and loaded, together: kernels by the threads of their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    /// All, in blocks of [`BLOCK`].
    Usual,
    /// Those that sample, in blocks of [`SMALL_BLOCK`].
    ManyRows,
}

impl Unit {
    /// Where a kernel for such blocks is.
    fn of(threads: u32) -> Self {
        match threads {
            SMALL_BLOCK => Self::ManyRows,
            _ => Self::Usual,
        }
    }

    /// What compilers are told.
    fn option(self) -> String {
        format!("-DMANY_ROWS={}", u32::from(self == Self::ManyRows))
    }
}

/// The files of `kernels/`, in the order in which they include each other.
const HEADERS: [&str; 13] = [
    include_str!("../../kernels/portable.h"),
    include_str!("../../kernels/definition.h"),
    include_str!("../../kernels/slice.h"),
    include_str!("../../kernels/block.h"),
    include_str!("../../kernels/candidates.h"),
    include_str!("../../kernels/row.h"),
    include_str!("../../kernels/read.h"),
    include_str!("../../kernels/gather.h"),
    include_str!("../../kernels/look.h"),
    include_str!("../../kernels/aim.h"),
    include_str!("../../kernels/search.h"),
    include_str!("../../kernels/draw.h"),
    include_str!("../../kernels/try.h"),
];
const KERNELS: [&str; 3] = [
    include_str!("../../kernels/sample.hip"),
    include_str!("../../kernels/softmax.hip"),
    include_str!("../../kernels/prefix_sum.hip"),
];

/// A unit's kernels as one translation unit: run-time compilers have no folder to include from.
fn source(unit: Unit) -> String {
    let kernels = match unit {
        Unit::Usual => &KERNELS[..],
        Unit::ManyRows => &KERNELS[..1],
    };
    let lines = HEADERS.iter().chain(kernels).flat_map(|file| file.lines());
    let lines = lines.filter(|line| !line.starts_with("#include \"") && *line != "#pragma once");
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Slices of a row.
pub(crate) fn slices(vocab: usize) -> usize {
    vocab.div_ceil(SLICE)
}

#[cfg(test)]
mod tests {
    use super::launch::READ_BLOCK;
    use super::*;

    #[test]
    fn the_source_is_one_unit() {
        let source = source(Unit::Usual);
        assert!(!source.contains("#include \"definition.h\""));
        for kernel in [
            "SAMPLE_KERNELS(f32",
            "SOFTMAX_KERNEL(bf16",
            "PREFIX_SUM_KERNELS(u32",
        ] {
            assert!(source.contains(kernel), "{kernel}");
        }
        let blocks = format!("#define BLOCK (MANY_ROWS ? {SMALL_BLOCK}u : {BLOCK}u)");
        assert!(source.contains(&blocks));
        assert!(source.contains(&format!("#define READ_BLOCK {READ_BLOCK}u")));
        assert!(source.contains(&format!("#define SLICE {SLICE}u")));
        assert!(source.contains(&format!("#define WIDE_WORDS {}u", rows::WIDE_WORDS)));
        assert!(source.contains(&format!("#define CAPACITY {}u", rows::CAPACITY)));
    }
}
