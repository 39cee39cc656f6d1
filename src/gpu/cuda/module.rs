//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::WAVE;
use crate::gpu::launch::Kernel;
use crate::gpu::loaded::{Loaded, lock};
use crate::gpu::rtc::{Compiler, NVRTC};
use crate::gpu::{Unit, cache};
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute,
};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The kernels of one device.
pub(super) struct Module {
    context: Arc<CudaContext>,
    loaded: Loaded<Arc<CudaModule>, Function>,
    /// Whether a launch may begin before the last one has ended: from compute capability 9.0 on, where the kernels wait for
    /// that, and from CUDA 12.3 on, where graphs know of it.
    pub(super) launches_early: bool,
    pub(super) multiprocessors: usize,
    /// Bytes of shared memory that each of them has.
    shared_memory: i32,
    /// Bytes of the L2 cache.
    pub(super) cache: usize,
}

/// A kernel that is loaded.
#[derive(Clone)]
pub(super) struct Function {
    pub(super) function: CudaFunction,
    /// Bytes of shared memory, beside the kernel's own, with which a block has a multiprocessor to itself.
    pub(super) alone: u32,
}

/// By the address of their context, which they keep alive.
static MODULES: Mutex<Option<HashMap<usize, Arc<Module>>>> = Mutex::new(None);

impl Module {
    /// The device's kernels, none of which is loaded yet the first time.
    pub(super) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let mut modules = lock(&MODULES);
        let modules = modules.get_or_insert_default();
        let address = Arc::as_ptr(context) as usize;
        if let Some(module) = modules.get(&address) {
            return Ok(module.clone());
        }
        let (major, _) = context.compute_capability().w()?;
        let attribute = |attribute| context.attribute(attribute).w();
        let count = |x| -> Result<usize> { Ok(usize::try_from(attribute(x)?).unwrap_or(0)) };
        let module = Arc::new(Self {
            context: context.clone(),
            loaded: Loaded::new(),
            launches_early: major >= 9 && driver_version()? >= 12_030,
            multiprocessors: count(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            cache: count(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        });
        modules.insert(address, module.clone());
        Ok(module)
    }

    pub(super) fn has_room_for_small_blocks(&self) -> bool {
        self.shared_memory >= 4 * 48 * 1024
    }

    /// Compiles the kernel's unit, or reads it from disk, and loads it, if that was not done yet.
    pub(super) fn function(&self, kernel: Kernel) -> Result<Function> {
        let load = |unit| {
            let code = Ptx::from_binary(compile(&self.context, unit)?);
            self.context.load_module(code).w()
        };
        let find = |module: &Arc<CudaModule>, name| self.prepare(module.load_function(name).w()?);
        self.loaded.kernel(kernel, load, find)
    }

    /// Allows the function what `alone` asks for.
    fn prepare(&self, function: CudaFunction) -> Result<Function> {
        let own = function.get_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
        // The device takes a little more of each block, so that two do not fit.
        let alone = (self.shared_memory / 2 - own.w()?).max(0);
        let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, alone).w()?;
        Ok(Function {
            function,
            alone: alone.unsigned_abs(),
        })
    }
}

/// The driver's CUDA version: 12.3 is 12,030.
fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: it is written to.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .w()?;
    Ok(version)
}

/// Machine code for the GPU of `context`.
fn compile(context: &CudaContext, unit: Unit) -> Result<Vec<u8>> {
    let (major, minor) = context.compute_capability().w()?;
    let target = format!("sm_{major}{minor}");
    let mut options = vec![
        format!("--gpu-architecture={target}"),
        "--std=c++17".to_owned(),
        // Contraction would make other bits than the CPU's.
        "--fmad=false".to_owned(),
        format!("-DWAVE={WAVE}"),
    ];
    options.extend(unit.options());
    let compiler = Compiler::load(&NVRTC).map_err(Error::wrap)?;
    let version = compiler.version().map_err(Error::wrap)?;
    let source = unit.source();
    let key = format!("{}\0NVRTC {version:?}\0{source}", options.join("\0"));
    cache::get_or_compile(&key, || compiler.compile(&source, &options, &target))
        .map_err(Error::wrap)
}
