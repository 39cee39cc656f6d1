//! NVIDIA GPUs, through Candle's `cuda` device: its context, its stream, its allocator.
//!
//! - this file: the kernels compiled and loaded, once for each device.
//! - [`sample`]: the rows' state in device memory, and the two launches that draw.
//! - [`ops`]: softmax and prefix sum.

mod ops;
mod sample;

pub(crate) use ops::{prefix_sum, softmax};
pub(crate) use sample::{Logits, Rows};

use super::rtc::{Compiler, NVRTC};
use super::{BLOCK, cache, slices, source};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DeviceRepr,
    LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Lanes of a wave (a warp).
const WAVE: u32 = 32;

/// The kernels of one device, by name.
pub(crate) struct Kernels {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

/// Loaded modules by the address of their context, which they keep alive.
static LOADED: Mutex<Option<HashMap<usize, Arc<Kernels>>>> = Mutex::new(None);

impl Kernels {
    /// The device's kernels; compiled, or read from disk, the first time.
    pub(crate) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let mut loaded = LOADED
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let loaded = loaded.get_or_insert_default();
        let address = Arc::as_ptr(context) as usize;
        if let Some(kernels) = loaded.get(&address) {
            return Ok(kernels.clone());
        }
        let module = context
            .load_module(Ptx::from_binary(compile(context)?))
            .w()?;
        let kernels = Arc::new(Self {
            module,
            functions: Mutex::default(),
        });
        loaded.insert(address, kernels.clone());
        Ok(kernels)
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).w()?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }
}

/// Machine code for the GPU of `context`.
fn compile(context: &CudaContext) -> Result<Vec<u8>> {
    let (major, minor) = context.compute_capability().w()?;
    let target = format!("sm_{major}{minor}");
    let options = [
        format!("--gpu-architecture={target}"),
        "--std=c++17".to_owned(),
        // Contraction would make other bits than the CPU's.
        "--fmad=false".to_owned(),
        format!("-DWAVE={WAVE}"),
    ];
    let compiler = Compiler::load(&NVRTC).map_err(Error::wrap)?;
    let version = compiler.version().map_err(Error::wrap)?;
    let source = source();
    let key = format!("{}\0NVRTC {version:?}\0{source}", options.join("\0"));
    cache::get_or_compile(&key, || compiler.compile(&source, &options, &target))
        .map_err(Error::wrap)
}

/// Rows of logits in device memory, of one type.
struct View<'a, T> {
    data: CudaView<'a, T>,
    rows: usize,
    vocab: usize,
    /// Elements from one row to the next.
    stride: usize,
}

/// What the first read leaves of each slice of each row.
struct Summaries {
    largest: CudaSlice<f32>,
    mass: CudaSlice<u64>,
}

impl Summaries {
    fn new(device: &CudaDevice, rows: usize, vocab: usize) -> Result<Self> {
        let count = (rows * slices(vocab)).max(1);
        // SAFETY: the first read writes every summary before another kernel reads it.
        unsafe {
            Ok(Self {
                largest: device.alloc(count)?,
                mass: device.alloc(count)?,
            })
        }
    }
}

impl Kernels {
    /// The first read of kernels/sample.hip: every slice's largest logit and, where the parameters (one for each row,
    /// or one that the rows share) want it, its mass.
    fn launch_slices<T: DeviceRepr>(
        &self,
        stream: &CudaStream,
        dtype: &str,
        logits: &View<'_, T>,
        params: &CudaSlice<u64>,
        shared_params: bool,
        summaries: &mut Summaries,
    ) -> Result<()> {
        let (stride, vocab) = (logits.stride as i64, logits.vocab as u32);
        let shared_params = u32::from(shared_params);
        let blocks = slices(logits.vocab).div_ceil((BLOCK / WAVE) as usize);
        let function = self.function(&format!("slices_{dtype}"))?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&logits.data).arg(&stride).arg(&vocab);
        launch.arg(params).arg(&shared_params);
        launch.arg(&mut summaries.largest).arg(&mut summaries.mass);
        // SAFETY: the arguments are those of `slices_*`; the view covers every row, and there is a summary for each slice
        // of each row.
        unsafe { launch.launch(grid(logits.rows * blocks)?) }.w()?;
        Ok(())
    }
}

/// `blocks` blocks in one dimension (CUDA allows 2³¹ − 1).
fn grid(blocks: usize) -> Result<LaunchConfig> {
    let blocks = u32::try_from(blocks).ok().filter(|&b| b < 1 << 31);
    let Some(blocks) = blocks else {
        candle_core::bail!("the batch needs more than 2^31 blocks: split it")
    };
    Ok(LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (BLOCK, 1, 1),
        shared_mem_bytes: 0,
    })
}
