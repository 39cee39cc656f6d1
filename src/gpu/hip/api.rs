//! The functions of HIP that this crate calls, and what they answer.
//!
//! `hip-sys` finds and links `libamdhip64`. Its declarations are not used: they return a Rust enumeration of the error
//! codes of HIP 5.4, and to receive a newer code in it is undefined behaviour. Here every enumeration is an `i32`. The
//! numbers below are the same in the headers of ROCm 5.2 and of ROCm 7.

use hip_sys as _;
use libloading::Library;
use libloading::os::unix::Library as Loaded;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A stream, an event, a module, a function or memory.
///
/// HIP's handles and addresses belong to the process, and its functions may be called from any thread; what each thread
/// has of its own is the current device, which [`super::HipDevice::call`] sets around every call.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(pub(super) *mut c_void);

// SAFETY: see above; the handle itself is a number.
unsafe impl Send for Handle {}
// SAFETY: the same.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) const NULL: Self = Self(std::ptr::null_mut());

    /// So many bytes further on, where it is memory.
    pub(super) fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_byte_add(bytes))
    }
}

/// `hipDeviceAttributeMultiprocessorCount`
pub(super) const MULTIPROCESSORS: c_int = 63;
/// `hipDeviceAttributeWarpSize`
pub(super) const WARP_SIZE: c_int = 87;
/// `hipStreamNonBlocking`
pub(super) const NON_BLOCKING: c_uint = 1;
/// `hipEventDisableTiming`
pub(super) const NO_TIMING: c_uint = 2;
/// `hipMemcpyHostToDevice`
pub(super) const TO_DEVICE: c_int = 1;
/// `hipMemcpyDeviceToHost`
pub(super) const TO_HOST: c_int = 2;

unsafe extern "C" {
    pub(super) fn hipGetDeviceCount(count: *mut c_int) -> c_int;
    fn hipGetDevice(device: *mut c_int) -> c_int;
    fn hipSetDevice(device: c_int) -> c_int;
    pub(super) fn hipDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int;
    pub(super) fn hipDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int) -> c_int;
    pub(super) fn hipDeviceTotalMem(bytes: *mut usize, device: c_int) -> c_int;
    pub(super) fn hipRuntimeGetVersion(version: *mut c_int) -> c_int;
    fn hipGetErrorName(code: c_int) -> *const c_char;
    fn hipGetErrorString(code: c_int) -> *const c_char;
    fn hipGetLastError() -> c_int;

    pub(super) fn hipMalloc(memory: *mut Handle, bytes: usize) -> c_int;
    pub(super) fn hipFree(memory: Handle) -> c_int;
    pub(super) fn hipHostMalloc(memory: *mut Handle, bytes: usize, flags: c_uint) -> c_int;
    pub(super) fn hipHostFree(memory: Handle) -> c_int;
    pub(super) fn hipMemcpyAsync(
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
        stream: Handle,
    ) -> c_int;

    pub(super) fn hipStreamCreateWithFlags(stream: *mut Handle, flags: c_uint) -> c_int;
    pub(super) fn hipStreamDestroy(stream: Handle) -> c_int;
    pub(super) fn hipStreamSynchronize(stream: Handle) -> c_int;
    pub(super) fn hipStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) -> c_int;
    pub(super) fn hipEventCreateWithFlags(event: *mut Handle, flags: c_uint) -> c_int;
    pub(super) fn hipEventDestroy(event: Handle) -> c_int;
    pub(super) fn hipEventRecord(event: Handle, stream: Handle) -> c_int;

    pub(super) fn hipModuleLoadData(module: *mut Handle, image: *const c_void) -> c_int;
    pub(super) fn hipModuleGetFunction(
        function: *mut Handle,
        module: Handle,
        name: *const c_char,
    ) -> c_int;
    pub(super) fn hipModuleLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> c_int;
}

/// What went wrong with an AMD GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HipError {
    /// A function of HIP failed.
    #[error("{function} failed: {name} ({code}){}{}", Text(name, text), Advice(*code))]
    Failed {
        /// The function.
        function: &'static str,
        /// What it returned, a `hipError_t`: 2 for no memory, 100 for no GPU, and so on.
        code: i32,
        /// HIP's own name for the code; `hipErrorUnknown` for codes that the installed HIP does not know.
        name: String,
        /// HIP's own text for the code.
        text: String,
    },
    /// There is no GPU with this index.
    #[error("there is no AMD GPU {index}: HIP sees {count}, counted from 0")]
    NoSuchDevice {
        /// The index asked for.
        index: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// HIP says of a GPU what no kernel can be compiled for.
    #[error("AMD GPU {index} cannot be used: {reason}")]
    Unusable {
        /// The GPU's index.
        index: usize,
        /// What HIP says of it.
        reason: String,
    },
}

/// HIP's text for a code, where it says more than the name.
struct Text<'a>(&'a str, &'a str);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self(name, text) if name == text || text.is_empty() => Ok(()),
            Self(_, text) => write!(f, ": {text}"),
        }
    }
}

/// What to do about an error, where that is known.
struct Advice(i32);

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            35 => "; the GPU's driver is older than this ROCm: update the driver, or install an older ROCm",
            100 => {
                "; no AMD GPU is visible: is the amdgpu driver loaded, is the user in the groups render and \
                 video, does HIP_VISIBLE_DEVICES hide the GPU?"
            }
            209 => "; this ROCm cannot run code on this GPU: install a ROCm that supports it",
            _ => "",
        })
    }
}

impl From<HipError> for candle_core::Error {
    fn from(error: HipError) -> Self {
        Self::wrap(error)
    }
}

/// What `function` returned.
pub(super) fn check(function: &'static str, code: c_int) -> Result<(), HipError> {
    if code == 0 {
        return Ok(());
    }
    let own = |text: *const c_char| match text.is_null() {
        true => String::new(),
        // SAFETY: HIP's names and texts are constants that end in NUL.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    };
    // SAFETY: both take any number. The last one takes our failure out of the thread's memory: a program that asks for the
    // last error after launches of its own must not find it.
    let (name, text) = unsafe {
        let texts = (hipGetErrorName(code), hipGetErrorString(code));
        hipGetLastError();
        texts
    };
    Err(HipError::Failed {
        function,
        code,
        name: own(name),
        text: own(text),
    })
}

/// While it lives, a device is current on this thread; then the one is that was before.
pub(super) struct Current {
    device: c_int,
    before: c_int,
}

impl Current {
    pub(super) fn set(device: c_int) -> Result<Self, HipError> {
        let mut before = device;
        // SAFETY: an integer to write to.
        check("hipGetDevice", unsafe { hipGetDevice(&mut before) })?;
        if before != device {
            // SAFETY: HIP checks the index.
            check("hipSetDevice", unsafe { hipSetDevice(device) })?;
        }
        Ok(Self { device, before })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.before != self.device {
            // SAFETY: as above. It was current, so it can be; were it lost, whoever uses it next would be told.
            let _ = check("hipSetDevice", unsafe { hipSetDevice(self.before) });
        }
    }
}

/// The name under which programs load the runtime of this version, and with it what they are linked to already.
pub(super) fn runtime_library(version: i32) -> String {
    format!("libamdhip64.so.{}", version / 10_000_000)
}

/// The first of these functions that the runtime has: for those that not every ROCm has, to which nothing can be linked.
///
/// # Safety
///
/// `F` must be the type of each.
pub(super) unsafe fn find<F: Copy>(
    version: i32,
    names: &[&'static str],
) -> Option<(&'static str, F)> {
    // In a program, the program's libraries; in a plugin, these need not be among them.
    let here = Loaded::this().into();
    // SAFETY: the runtime is loaded already; this counts one user more.
    let by_name = unsafe { Library::new(runtime_library(version)) }.ok();
    let libraries = [Some(here), by_name];
    names.iter().find_map(|&name| {
        libraries.iter().flatten().find_map(|library: &Library| {
            // SAFETY: the caller vouches for the type. The function outlives the library's handle, because this program is
            // linked to the runtime.
            unsafe { library.get::<F>(name.as_bytes()) }
                .ok()
                .map(|found| (name, *found))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: i32) -> String {
        check("hipMalloc", code).unwrap_err().to_string()
    }

    #[test]
    fn every_code_becomes_an_error_in_hips_words() {
        assert_eq!(check("hipMalloc", 0), Ok(()));
        assert!(message(2).starts_with("hipMalloc failed: hipErrorOutOfMemory (2)"));
        // Codes of ROCm 7, and none of any.
        for code in [720, 907, 123_456, -1] {
            let said = message(code);
            assert!(said.starts_with("hipMalloc failed: "), "{said}");
            assert!(said.contains(&format!(" ({code})")), "{said}");
        }
    }

    #[test]
    fn what_can_be_done_is_said() {
        for (code, advice) in [
            (35, "update the driver"),
            (100, "no AMD GPU is visible"),
            (209, "install a ROCm that supports it"),
        ] {
            let said = message(code);
            assert!(said.contains(advice) && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn optional_functions_are_found() {
        type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
        let names = ["hipNoSuchFunction", "hipRuntimeGetVersion"];
        // SAFETY: the one that exists has this type.
        let found = unsafe { find::<Version>(0, &names) };
        assert_eq!(found.map(|(name, _)| name), Some("hipRuntimeGetVersion"));
        // SAFETY: there is none.
        assert!(unsafe { find::<Version>(0, &names[..1]) }.is_none());
    }
}
