//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::HipDevice;
use super::api::{self, Handle};
use super::device::hip;
use crate::gpu::launch::Kernel;
use crate::gpu::loaded::{Loaded, lock};
use crate::gpu::rtc::{CompileError, Compiler, HIPRTC};
use crate::gpu::{Unit, cache};
use candle_core::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

/// The kernels of one device.
pub(super) struct Module {
    device: HipDevice,
    compiler: Compiler,
    loaded: Loaded<Handle, Handle>,
}

/// By the device's index. They stay for as long as the process: nothing is unloaded while it may run.
static MODULES: Mutex<BTreeMap<usize, Arc<Module>>> = Mutex::new(BTreeMap::new());

impl Module {
    /// The device's kernels, none of which is loaded yet the first time. Fails where nothing could compile them.
    pub(super) fn of(device: &HipDevice) -> Result<Arc<Self>> {
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(&device.index()) {
            return Ok(module.clone());
        }
        let module = Arc::new(Self {
            device: device.clone(),
            compiler: compiler(device.runtime()).map_err(Error::wrap)?,
            loaded: Loaded::new(),
        });
        modules.insert(device.index(), module.clone());
        Ok(module)
    }

    /// Compiles the kernel's unit, or reads it from disk, and loads it, if that was not done yet.
    pub(super) fn function(&self, kernel: Kernel) -> Result<Handle> {
        self.loaded.kernel(
            kernel,
            |unit| self.load(unit),
            |&unit, name| self.find(unit, name),
        )
    }

    fn load(&self, unit: Unit) -> Result<Handle> {
        let code = self.compile(unit)?;
        let mut module = Handle::NULL;
        // SAFETY: a whole code object, which HIP copies; it says itself how long it is.
        unsafe {
            hip!(
                self.device,
                hipModuleLoadData(&mut module, code.as_ptr().cast())
            )
        }?;
        Ok(module)
    }

    fn find(&self, module: Handle, name: &str) -> Result<Handle> {
        let symbol = CString::new(name).map_err(Error::wrap)?;
        let mut function = Handle::NULL;
        // SAFETY: the module is loaded and the name ends in NUL.
        unsafe {
            hip!(
                self.device,
                hipModuleGetFunction(&mut function, module, symbol.as_ptr())
            )
        }?;
        Ok(function)
    }

    /// Machine code for the device.
    fn compile(&self, unit: Unit) -> Result<Vec<u8>> {
        let Self {
            device, compiler, ..
        } = self;
        let options = options(device.target(), device.wave_size(), unit);
        // hipRTC calls itself 9.0 in every release, so the runtime's version stands for it too.
        let version = (compiler.version().map_err(Error::wrap)?, device.runtime());
        let source = unit.source();
        let key = format!("{}\0hipRTC {version:?}\0{source}", options.join("\0"));
        cache::get_or_compile(&key, || {
            compiler.compile(&source, &options, device.target())
        })
        .map_err(Error::wrap)
    }
}

fn options(target: &str, wave: u32, unit: Unit) -> Vec<String> {
    let mut options = vec![
        format!("--offload-arch={target}"),
        "-std=c++17".to_owned(),
        "-O3".to_owned(),
        // Contraction would make other bits than the CPU's.
        "-ffp-contract=off".to_owned(),
        format!("-DWAVE={wave}"),
    ];
    options.extend(unit.options());
    options
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
        let units = [
            ("gfx90a", 64, Unit::Samplers("bf16"), "slices_bf16"),
            ("gfx1030", 32, Unit::Samplers("f32"), "try_f32"),
            ("gfx90a", 64, Unit::ManyRows("f16"), "draw_f16"),
            ("gfx1030", 32, Unit::Ops, "softmax_f16"),
        ];
        for (target, wave, unit, kernel) in units {
            let code = compiler
                .compile(&unit.source(), &options(target, wave, unit), target)
                .unwrap_or_else(|error| panic!("{error}"));
            let contains = |text: &[u8]| code.windows(text.len()).any(|w| w == text);
            assert!(
                contains(b"\x7fELF") && contains(target.as_bytes()),
                "{target}"
            );
            assert!(contains(kernel.as_bytes()), "{kernel}");
        }
    }

    #[test]
    fn mistakes_show_the_log_and_name_the_target_in_the_first_line() {
        let Some(compiler) = installed() else { return };
        // An unknown target makes hipRTC 5.2 crash, so a known one it is.
        let mistake = "int f() { return nonsense; }";
        let error = compiler.compile(mistake, &options("gfx90a", 64, Unit::Ops), "gfx90a");
        let said = error.unwrap_err().to_string();
        let first = said.lines().next().unwrap_or_default();
        assert!(
            first.contains("gfx90a") && first.contains("hipRTC"),
            "{said}"
        );
        assert!(said.contains("use of undeclared identifier"), "{said}");
    }
}
