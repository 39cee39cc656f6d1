//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::WAVE;
use crate::gpu::rtc::{Compiler, NVRTC};
use crate::gpu::{cache, source};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The kernels of one device, by name.
pub(super) struct Module {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    /// Whether a launch may begin before the last one has ended: from compute capability 9.0 on, where the kernels wait for
    /// that, and from CUDA 12.3 on, where graphs know of it.
    pub(super) launches_early: bool,
}

/// Loaded modules by the address of their context, which they keep alive.
static LOADED: Mutex<Option<HashMap<usize, Arc<Module>>>> = Mutex::new(None);

impl Module {
    /// The device's kernels; compiled, or read from disk, the first time.
    pub(super) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let mut loaded = LOADED
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let loaded = loaded.get_or_insert_default();
        let address = Arc::as_ptr(context) as usize;
        if let Some(module) = loaded.get(&address) {
            return Ok(module.clone());
        }
        let module = context
            .load_module(Ptx::from_binary(compile(context)?))
            .w()?;
        let (major, _) = context.compute_capability().w()?;
        let module = Arc::new(Self {
            module,
            functions: Mutex::default(),
            launches_early: major >= 9 && driver_version()? >= 12_030,
        });
        loaded.insert(address, module.clone());
        Ok(module)
    }

    pub(super) fn function(&self, name: &'static str) -> Result<CudaFunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).w()?;
        functions.insert(name, function.clone());
        Ok(function)
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
