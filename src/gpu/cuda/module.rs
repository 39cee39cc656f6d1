//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::WAVE;
use crate::gpu::rtc::{Compiler, NVRTC};
use crate::gpu::{Unit, cache, source};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

/// The kernels of one device, by unit and name.
pub(super) struct Module {
    context: Arc<CudaContext>,
    units: Mutex<HashMap<Unit, Loaded>>,
    /// Whether a launch may begin before the last one has ended: from compute capability 9.0 on, where the kernels wait for
    /// that, and from CUDA 12.3 on, where graphs know of it.
    pub(super) launches_early: bool,
    pub(super) has_room_for_small_blocks: bool,
}

struct Loaded {
    module: Arc<CudaModule>,
    functions: HashMap<&'static str, CudaFunction>,
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
        let (major, _) = context.compute_capability().w()?;
        let shared_memory = context
            .attribute(
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )
            .w()?;
        let module = Arc::new(Self {
            context: context.clone(),
            units: HashMap::from([(Unit::Usual, load(context, Unit::Usual)?)]).into(),
            launches_early: major >= 9 && driver_version()? >= 12_030,
            has_room_for_small_blocks: shared_memory >= 4 * 48 * 1024,
        });
        loaded.insert(address, module.clone());
        Ok(module)
    }

    /// The kernel for blocks of so many threads.
    pub(super) fn function(&self, name: &'static str, threads: u32) -> Result<CudaFunction> {
        let mut units = self
            .units
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let unit = match units.entry(Unit::of(threads)) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(vacant) => {
                let loaded = load(&self.context, *vacant.key())?;
                vacant.insert(loaded)
            }
        };
        if let Some(function) = unit.functions.get(name) {
            return Ok(function.clone());
        }
        let function = unit.module.load_function(name).w()?;
        unit.functions.insert(name, function.clone());
        Ok(function)
    }
}

fn load(context: &Arc<CudaContext>, unit: Unit) -> Result<Loaded> {
    let code = Ptx::from_binary(compile(context, unit)?);
    Ok(Loaded {
        module: context.load_module(code).w()?,
        functions: HashMap::new(),
    })
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
    let options = [
        format!("--gpu-architecture={target}"),
        "--std=c++17".to_owned(),
        // Contraction would make other bits than the CPU's.
        "--fmad=false".to_owned(),
        format!("-DWAVE={WAVE}"),
        unit.option(),
    ];
    let compiler = Compiler::load(&NVRTC).map_err(Error::wrap)?;
    let version = compiler.version().map_err(Error::wrap)?;
    let source = source(unit);
    let key = format!("{}\0NVRTC {version:?}\0{source}", options.join("\0"));
    cache::get_or_compile(&key, || compiler.compile(&source, &options, &target))
        .map_err(Error::wrap)
}
