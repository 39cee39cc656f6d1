//! The kernels of a device: compiled for it, or read from disk, and loaded.

use super::HipDevice;
use super::api::{self, Handle};
use super::device::hip;
use crate::gpu::rtc::{CompileError, Compiler, HIPRTC};
use crate::gpu::{Unit, cache, source};
use candle_core::{Error, Result};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard};

/// The kernels of one device, by unit and name.
pub(super) struct Module {
    device: HipDevice,
    units: Mutex<HashMap<Unit, Loaded>>,
}

struct Loaded {
    handle: Handle,
    functions: HashMap<&'static str, Handle>,
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
        let module = Arc::new(Self {
            device: device.clone(),
            units: HashMap::from([(Unit::Usual, load(device, Unit::Usual)?)]).into(),
        });
        loaded.insert(device.index(), module.clone());
        Ok(module)
    }

    /// The kernel for blocks of so many threads.
    pub(super) fn function(&self, name: &'static str, threads: u32) -> Result<Handle> {
        let mut units = lock(&self.units);
        let unit = match units.entry(Unit::of(threads)) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(vacant) => {
                let loaded = load(&self.device, *vacant.key())?;
                vacant.insert(loaded)
            }
        };
        if let Some(&function) = unit.functions.get(name) {
            return Ok(function);
        }
        let symbol = CString::new(name).map_err(Error::wrap)?;
        let mut function = Handle::NULL;
        // SAFETY: the module is loaded and the name ends in NUL.
        unsafe {
            hip!(
                self.device,
                hipModuleGetFunction(&mut function, unit.handle, symbol.as_ptr())
            )
        }?;
        unit.functions.insert(name, function);
        Ok(function)
    }
}

fn load(device: &HipDevice, unit: Unit) -> Result<Loaded> {
    let code = compile(device, unit)?;
    let mut handle = Handle::NULL;
    // SAFETY: a whole code object, which HIP copies; it says itself how long it is.
    unsafe { hip!(device, hipModuleLoadData(&mut handle, code.as_ptr().cast())) }?;
    Ok(Loaded {
        handle,
        functions: HashMap::new(),
    })
}

/// Machine code for the device.
fn compile(device: &HipDevice, unit: Unit) -> Result<Vec<u8>> {
    let options = options(device.target(), device.wave_size(), unit);
    let compiler = compiler(device.runtime()).map_err(Error::wrap)?;
    // hipRTC calls itself 9.0 in every release, so the runtime's version stands for it too.
    let version = (compiler.version().map_err(Error::wrap)?, device.runtime());
    let source = source(unit);
    let key = format!("{}\0hipRTC {version:?}\0{source}", options.join("\0"));
    cache::get_or_compile(&key, || {
        compiler.compile(&source, &options, device.target())
    })
    .map_err(Error::wrap)
}

fn options(target: &str, wave: u32, unit: Unit) -> [String; 6] {
    [
        format!("--offload-arch={target}"),
        "-std=c++17".to_owned(),
        "-O3".to_owned(),
        // Contraction would make other bits than the CPU's.
        "-ffp-contract=off".to_owned(),
        format!("-DWAVE={wave}"),
        unit.option(),
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
        let targets = [
            ("gfx90a", 64, Unit::Usual),
            ("gfx1030", 32, Unit::Usual),
            ("gfx90a", 64, Unit::ManyRows),
        ];
        for (target, wave, unit) in targets {
            let code = compiler
                .compile(&source(unit), &options(target, wave, unit), target)
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
        let error = compiler.compile(mistake, &options("gfx90a", 64, Unit::Usual), "gfx90a");
        let said = error.unwrap_err().to_string();
        let first = said.lines().next().unwrap_or_default();
        assert!(
            first.contains("gfx90a") && first.contains("hipRTC"),
            "{said}"
        );
        assert!(said.contains("use of undeclared identifier"), "{said}");
    }
}
