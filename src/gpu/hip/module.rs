//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::HipDevice;
use super::api::{self, Handle};
use super::device::hip;
use crate::gpu::rtc::{CompileError, Compiler, HIPRTC};
use crate::gpu::{cache, source};
use candle_core::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard};

/// The kernels of one device, by name.
pub(super) struct Module {
    device: HipDevice,
    handle: Handle,
    functions: Mutex<HashMap<&'static str, Handle>>,
}

/// What is loaded, by the device's index. It stays for as long as the process: nothing is unloaded while it may run.
static LOADED: Mutex<BTreeMap<usize, Arc<Module>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Module {
    /// The device's kernels; compiled, or read from disk, the first time. What fails is tried again next time.
    pub(super) fn of(device: &HipDevice) -> Result<Arc<Self>> {
        let mut loaded = lock(&LOADED);
        if let Some(module) = loaded.get(&device.index()) {
            return Ok(module.clone());
        }
        let module = Arc::new(Self::load(device, &compile(device)?)?);
        loaded.insert(device.index(), module.clone());
        Ok(module)
    }

    fn load(device: &HipDevice, code: &[u8]) -> Result<Self> {
        let mut handle = Handle::NULL;
        // SAFETY: a whole code object, which HIP copies; it says itself how long it is.
        unsafe { hip!(device, hipModuleLoadData(&mut handle, code.as_ptr().cast())) }?;
        Ok(Self {
            device: device.clone(),
            handle,
            functions: Mutex::default(),
        })
    }

    pub(super) fn function(&self, name: &'static str) -> Result<Handle> {
        let mut functions = lock(&self.functions);
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        let symbol = CString::new(name).map_err(Error::wrap)?;
        let mut function = Handle::NULL;
        // SAFETY: the module is loaded and the name ends in NUL.
        unsafe {
            hip!(
                self.device,
                hipModuleGetFunction(&mut function, self.handle, symbol.as_ptr())
            )
        }?;
        functions.insert(name, function);
        Ok(function)
    }
}

/// Machine code for the device.
fn compile(device: &HipDevice) -> Result<Vec<u8>> {
    let options = options(device.target(), device.wave_size());
    let compiler = compiler(device.runtime()).map_err(Error::wrap)?;
    // hipRTC calls itself 9.0 in every release, so the runtime's version stands for it too.
    let version = (compiler.version().map_err(Error::wrap)?, device.runtime());
    let source = source();
    let key = format!("{}\0hipRTC {version:?}\0{source}", options.join("\0"));
    cache::get_or_compile(&key, || {
        compiler.compile(&source, &options, device.target())
    })
    .map_err(Error::wrap)
}

fn options(target: &str, wave: u32) -> [String; 5] {
    [
        format!("--offload-arch={target}"),
        "-std=c++17".to_owned(),
        "-O3".to_owned(),
        // Contraction would make other bits than the CPU's.
        "-ffp-contract=off".to_owned(),
        format!("-DWAVE={wave}"),
    ]
}

/// hipRTC as it came with the runtime, whose code objects the runtime can load, whatever else is installed: a library of its
/// own, or, up to ROCm 6, a part of the runtime's.
fn compiler(version: i32) -> std::result::Result<Compiler, CompileError> {
    let own = format!("libhiprtc.so.{}", version / 10_000_000);
    Compiler::load_with(&HIPRTC, &[own, api::runtime_library(version)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// hipRTC compiles for any GPU, present or not.
    fn installed() -> Option<Compiler> {
        let mut version = 0;
        // SAFETY: an integer to write to.
        let code = unsafe { api::hipRuntimeGetVersion(&mut version) };
        let compiler = match api::check("hipRuntimeGetVersion", code) {
            Ok(()) => compiler(version).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        compiler
            .inspect_err(|error| println!("skipped: {error}"))
            .ok()
    }

    #[test]
    fn the_kernels_compile_for_both_wave_sizes() {
        let Some(compiler) = installed() else { return };
        for (target, wave) in [("gfx90a", 64), ("gfx1030", 32)] {
            let code = compiler
                .compile(&source(), &options(target, wave), target)
                .unwrap_or_else(|error| panic!("{error}"));
            let contains = |text: &[u8]| code.windows(text.len()).any(|w| w == text);
            assert!(
                contains(b"\x7fELF") && contains(target.as_bytes()),
                "{target}"
            );
            assert!(contains(b"draw_bf16"), "{target}");
        }
    }

    #[test]
    fn mistakes_show_the_log_and_name_the_target_in_the_first_line() {
        let Some(compiler) = installed() else { return };
        // An unknown target makes hipRTC 5.2 crash, so a known one it is.
        let mistake = "int f() { return nonsense; }";
        let error = compiler.compile(mistake, &options("gfx90a", 64), "gfx90a");
        let said = error.unwrap_err().to_string();
        let first = said.lines().next().unwrap_or_default();
        assert!(
            first.contains("gfx90a") && first.contains("hipRTC"),
            "{said}"
        );
        assert!(said.contains("use of undeclared identifier"), "{said}");
    }
}
