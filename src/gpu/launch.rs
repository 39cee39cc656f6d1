//! The launch plan: which kernels run with which grids and arguments, whatever the driver.

use super::{BLOCK, SMALL_BLOCK, Unit, slices};
use candle_core::{DType, Result, bail};

/// A driver: memory, copies and launches in the order of one stream. It knows nothing of sampling.
pub(crate) trait Gpu {
    /// Device memory; dropped, it is freed after the work that was submitted before.
    type Memory;

    /// Lanes of a wave.
    fn wave(&self) -> u32;

    /// Whether a multiprocessor has room for four blocks that draw, of 48 KiB of shared memory each: then small ones take more rows at once.
    fn has_room_for_small_blocks(&self) -> bool;

    /// How many bytes its cache holds, where reading more than that past it is known to be faster.
    fn cache(&self) -> Option<usize>;

    /// Memory for so many 64-bit words, with whatever was in it.
    fn allocate(&self, words: usize) -> Result<Self::Memory>;

    /// Where it begins, as kernels see it.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies `words` to `memory`, from its word `at` on; has read them when it returns.
    fn upload(&self, words: &[u64], memory: &mut Self::Memory, at: usize) -> Result<()>;

    /// Launches a grid of so many columns and rows of blocks.
    ///
    /// # Safety
    ///
    /// The arguments must be the kernel's, and the addresses among them valid for what it does there.
    unsafe fn launch(&self, kernel: Kernel, grid: [usize; 2], arguments: &[Argument])
    -> Result<()>;
}

/// The grid as drivers take it, if its columns are at most as many as this one allows; every driver allows 65,535 rows.
pub(crate) fn checked([columns, rows]: [usize; 2], most: u32) -> Result<[u32; 2]> {
    match (u32::try_from(columns), u16::try_from(rows)) {
        (Ok(columns), Ok(rows)) if columns <= most => Ok([columns, u32::from(rows)]),
        _ => bail!("a grid of {columns} × {rows} blocks is too large to launch: split the batch"),
    }
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// Where something is on the device.
    Address(u64),
    U32(u32),
    I64(i64),
    #[cfg(feature = "cuda")]
    F32(f32),
}

impl Argument {
    /// Where the value is on the host, as launch functions want it.
    pub(crate) fn value(&self) -> *mut std::ffi::c_void {
        let value: *const std::ffi::c_void = match self {
            Self::Address(x) => (x as *const u64).cast(),
            Self::U32(x) => (x as *const u32).cast(),
            Self::I64(x) => (x as *const i64).cast(),
            #[cfg(feature = "cuda")]
            Self::F32(x) => (x as *const f32).cast(),
        };
        value.cast_mut()
    }
}

/// Rows of logits in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logits {
    /// Of the first row.
    pub(crate) address: u64,
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl Logits {
    /// Of the rows themselves, wherever they are.
    fn bytes(&self) -> usize {
        self.rows * self.vocab * self.dtype.size_in_bytes()
    }
}

/// A kernel of a unit, and the threads of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) threads: u32,
}

impl Kernel {
    pub(super) const fn new(name: &'static str, unit: Unit, threads: u32) -> Self {
        Self {
            name,
            unit,
            threads,
        }
    }
}

/// The kernels for one dtype of logits.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub(super) slices: Reading,
    pub(super) look: Kernel,
    pub(super) few_rows: Drawing,
    pub(super) some_rows: Drawing,
    pub(super) many_rows: Drawing,
    /// In the order of their launches.
    #[cfg(feature = "cuda")]
    pub(crate) softmax: (Reading, Kernel),
}

/// The first read: of rows that the cache has room for, of more, and of few that are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(super) usual: Kernel,
    pub(super) once: Kernel,
    pub(super) placed: Kernel,
}

/// Those that draw, without tries or with them.
#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) draw: Kernel,
    pub(super) r#try: Kernel,
}

macro_rules! kernels {
    ($dtype:literal) => {{
        const fn drawing(draw: Unit, r#try: Unit, threads: u32) -> Drawing {
            Drawing {
                draw: Kernel::new(concat!("draw_", $dtype), draw, threads),
                r#try: Kernel::new(concat!("try_", $dtype), r#try, threads),
            }
        }
        const fn reading(unit: Unit) -> Reading {
            Reading {
                usual: Kernel::new(concat!("slices_", $dtype), unit, READ_BLOCK),
                once: Kernel::new(concat!("slices_once_", $dtype), unit, READ_BLOCK),
                placed: Kernel::new(concat!("slices_placed_", $dtype), unit, READ_BLOCK),
            }
        }
        const SAMPLERS: Unit = Unit::Samplers($dtype);
        const MANY_ROWS: Unit = Unit::ManyRows($dtype);
        Kernels {
            slices: reading(SAMPLERS),
            look: Kernel::new(concat!("look_", $dtype), SAMPLERS, BLOCK),
            few_rows: drawing(SAMPLERS, SAMPLERS, BLOCK),
            some_rows: drawing(SAMPLERS, Unit::SomeRows($dtype), BLOCK),
            many_rows: drawing(MANY_ROWS, MANY_ROWS, SMALL_BLOCK),
            #[cfg(feature = "cuda")]
            softmax: (
                reading(Unit::Ops),
                Kernel::new(concat!("softmax_", $dtype), Unit::Ops, BLOCK),
            ),
        }
    }};
}

impl Kernels {
    pub(crate) fn of(dtype: DType) -> Result<&'static Self> {
        const F32: Kernels = kernels!("f32");
        const F16: Kernels = kernels!("f16");
        const BF16: Kernels = kernels!("bf16");
        match dtype {
            DType::F32 => Ok(&F32),
            DType::F16 => Ok(&F16),
            DType::BF16 => Ok(&BF16),
            _ => bail!("logits have dtype {dtype:?}, expected F32, F16 or BF16"),
        }
    }
}

/// Groups of a slice, as in `kernels/row.h`.
const GROUPS: usize = 32;

/// Threads of a block that reads slices, as in `kernels/read.h`.
pub(super) const READ_BLOCK: u32 = 128;

/// More blocks than a large GPU runs at once, of four bytes a token; where slices are enough for twice as many, each wave reads two of them, and so
/// on.
const READING_BLOCKS: usize = 16_384;
/// The same for rows that the cache has room for: reads are quick, and blocks that begin and end one by one take longer than a few more slices.
const CACHED_READING_BLOCKS: usize = 2_400;
/// And where f32 rows are weighed, too, which takes longer than to read them: twice what an H200 has at once, lest the last of them leave it half empty.
const CACHED_WEIGHING_BLOCKS: usize = 3_168;

/// The parameters of rows that are read.
pub(crate) struct Params<'a, G: Gpu> {
    pub(crate) memory: &'a G::Memory,
    /// One that the rows share, not one for each.
    pub(crate) shared: bool,
    /// Whether some row's mass is wanted.
    pub(crate) weighed: bool,
    /// Whether some row's masses are divided.
    pub(crate) placed: bool,
}

/// What the first read leaves of each slice of each row.
pub(crate) struct Summaries<G: Gpu> {
    slices: usize,
    /// f32, one a slice
    largest: G::Memory,
    /// u8, [`GROUPS`] a slice
    groups: G::Memory,
    /// u64, one a slice, of rows whose masses are wanted
    mass: G::Memory,
}

impl<G: Gpu> Summaries<G> {
    pub(crate) fn new(gpu: &G, rows: usize, vocab: usize) -> Result<Self> {
        let slices = (rows * slices(vocab)).max(1);
        Ok(Self {
            slices,
            largest: gpu.allocate(slices.div_ceil(2))?,
            groups: gpu.allocate(slices * GROUPS / 8)?,
            mass: gpu.allocate(slices)?,
        })
    }

    pub(crate) fn fit(&self, rows: usize, vocab: usize) -> bool {
        self.slices >= rows * slices(vocab)
    }

    pub(crate) fn largest(&self) -> Argument {
        Argument::Address(G::address(&self.largest))
    }

    pub(crate) fn groups(&self) -> Argument {
        Argument::Address(G::address(&self.groups))
    }

    pub(crate) fn mass(&self) -> Argument {
        Argument::Address(G::address(&self.mass))
    }

    /// The first read of kernels/read.h, by a unit's `slices_*` or `slices_once_*`: every slice's largest logit and, where the parameters
    /// want it, its mass; in `kept`, how that is divided. `wide` is where a look at the rows will leave something. Either may be 0 where nobody wants it.
    ///
    /// # Safety
    ///
    /// The logits and the parameters must be where they are said to be, the summaries fit, and the kernel be for the logits' dtype.
    pub(crate) unsafe fn read(
        &mut self,
        gpu: &G,
        kernels: Reading,
        logits: &Logits,
        params: Params<G>,
        kept: Argument,
        wide: Argument,
    ) -> Result<()> {
        let per_block = (kernels.usual.threads / gpu.wave()) as usize;
        let each = slices(logits.vocab).div_ceil(per_block);
        let at_most = |most: usize| {
            let most = most * logits.dtype.size_in_bytes() / size_of::<f32>();
            each.div_ceil((logits.rows * each / most).max(1))
        };
        let (usual, blocks) = match gpu.cache() {
            // They are not alone in it: on an H200 the two are as fast at seven eighths.
            Some(cache) if logits.bytes() > cache / 8 * 7 => {
                (kernels.once, at_most(READING_BLOCKS))
            }
            Some(_) if params.weighed && logits.dtype == DType::F32 => {
                let blocks = CACHED_WEIGHING_BLOCKS / logits.rows;
                (kernels.usual, blocks.clamp(1, each))
            }
            Some(_) => (kernels.usual, at_most(CACHED_READING_BLOCKS)),
            None => (kernels.usual, at_most(READING_BLOCKS)),
        };
        let kernel = match params.placed {
            true => kernels.placed,
            false => usual,
        };
        let arguments = [
            Argument::Address(logits.address),
            Argument::I64(logits.stride as i64),
            Argument::U32(logits.vocab as u32),
            Argument::Address(G::address(params.memory)),
            Argument::U32(u32::from(params.shared)),
            Argument::U32((blocks * per_block) as u32),
            self.largest(),
            self.groups(),
            self.mass(),
            kept,
            wide,
        ];
        // SAFETY: the arguments are those of `slices_*`; the caller vouches for the addresses.
        unsafe { gpu.launch(kernel, [logits.rows, blocks], &arguments) }
    }
}
