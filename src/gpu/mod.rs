//! What GPU backends share: the kernels' sources, their compilation at run time, the launch plan.
//!
//! The kernels are in `kernels/`, HIP C++ that NVRTC and hipRTC both read. They are embedded here, compiled
//! at first use for the GPU that is present, and kept on disk ([`cache`]).
//!
//! - [`launch`]: what runs with which grid and arguments, whatever the driver.
//! - [`loaded`]: the kernels that a device has loaded.
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
mod loaded;
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

/// What is compiled, and loaded, together. Each takes a while, and few programs need more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    /// Softmax and prefix sums.
    // Candle has tensors on CUDA devices alone.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    Ops,
    /// The samplers for a dtype of logits, which goes by its name in the kernels; what draws from tries, for few rows.
    Samplers(&'static str),
    /// What draws from tries, for more rows.
    SomeRows(&'static str),
    /// What draws, in blocks of [`SMALL_BLOCK`].
    ManyRows(&'static str),
}

impl Unit {
    /// What compilers are told.
    fn options(self) -> Vec<String> {
        match self {
            Self::Ops => vec![],
            Self::Samplers(dtype) => vec![format!("-DLOGITS={dtype}")],
            Self::SomeRows(dtype) => vec![format!("-DLOGITS={dtype}"), "-DROWS=SOME_ROWS".into()],
            Self::ManyRows(dtype) => vec![format!("-DLOGITS={dtype}"), "-DROWS=MANY_ROWS".into()],
        }
    }

    /// One translation unit: run-time compilers have no folder to include from.
    fn source(self) -> String {
        let kernels = match self {
            Self::Ops => &[SLICES, SOFTMAX, PREFIX_SUM][..],
            Self::Samplers(_) => &[SLICES, SAMPLE],
            Self::SomeRows(_) | Self::ManyRows(_) => &[SAMPLE],
        };
        let lines = HEADERS.iter().chain(kernels).flat_map(|file| file.lines());
        let lines =
            lines.filter(|line| !line.starts_with("#include \"") && *line != "#pragma once");
        lines.flat_map(|line| [line, "\n"]).collect()
    }
}

/// The files of `kernels/`, in the order in which they include each other.
const HEADERS: [&str; 17] = [
    include_str!("../../kernels/portable.h"),
    include_str!("../../kernels/definition.h"),
    include_str!("../../kernels/slice.h"),
    include_str!("../../kernels/logits.h"),
    include_str!("../../kernels/block.h"),
    include_str!("../../kernels/candidates.h"),
    include_str!("../../kernels/groups.h"),
    include_str!("../../kernels/row.h"),
    include_str!("../../kernels/read.h"),
    include_str!("../../kernels/rank.h"),
    include_str!("../../kernels/gather.h"),
    include_str!("../../kernels/look.h"),
    include_str!("../../kernels/aim.h"),
    include_str!("../../kernels/search.h"),
    include_str!("../../kernels/draw.h"),
    include_str!("../../kernels/above.h"),
    include_str!("../../kernels/try.h"),
];
const SLICES: &str = include_str!("../../kernels/slices.hip");
const SAMPLE: &str = include_str!("../../kernels/sample.hip");
const SOFTMAX: &str = include_str!("../../kernels/softmax.hip");
const PREFIX_SUM: &str = include_str!("../../kernels/prefix_sum.hip");

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
        let source = Unit::Samplers("f32").source();
        assert!(!source.contains("#include \"definition.h\""));
        for (unit, kernels) in [
            (Unit::Ops, "SLICES SOFTMAX PREFIX_SUM"),
            (Unit::Samplers("f32"), "SLICES LOOK DRAW TRY"),
            (Unit::SomeRows("f32"), "LOOK DRAW TRY"),
            (Unit::ManyRows("f32"), "LOOK DRAW TRY"),
        ] {
            let source = unit.source();
            for kernel in ["SLICES", "SOFTMAX", "PREFIX_SUM", "LOOK", "DRAW", "TRY"] {
                let has = source.contains(&format!("#define {kernel}_KERNEL"));
                let wanted = kernels.split(' ').any(|wanted| wanted == kernel);
                assert_eq!(has, wanted, "{unit:?}: {kernel}");
            }
        }
        let blocks = format!("#define BLOCK (ROWS == MANY_ROWS ? {SMALL_BLOCK}u : {BLOCK}u)");
        assert!(source.contains(&blocks));
        assert!(source.contains(&format!("#define READ_BLOCK {READ_BLOCK}u")));
        assert!(source.contains(&format!("#define SLICE {SLICE}u")));
        assert!(source.contains(&format!("#define WIDE_WORDS {}u", rows::WIDE_WORDS)));
        let stages = "enum Stage { BY_ITS_BLOCKS, TO_BE_ASKED, TO_BE_BOUNDED, ASKED };";
        assert!(source.contains(stages), "as in rows.rs");
        assert!(source.contains(&format!("#define CAPACITY {}u", rows::CAPACITY)));
    }
}
