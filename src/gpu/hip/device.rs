//! An AMD GPU: what it is, and calling HIP with it.

use super::api::{self, Current, HipError, check};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

/// An AMD GPU, as HIP sees it. Clones are the same GPU and cost nothing.
///
/// Opening one starts nothing on it and compiles nothing. It can be used from any thread; each use leaves the thread's
/// current device as it was.
#[derive(Clone, Debug)]
pub struct HipDevice(Arc<Description>);

#[derive(Debug)]
struct Description {
    index: c_int,
    name: String,
    target: String,
    wave: u32,
    compute_units: u32,
    memory: u64,
    runtime: c_int,
}

impl HipDevice {
    /// How many AMD GPUs HIP sees; `HIP_VISIBLE_DEVICES` and `ROCR_VISIBLE_DEVICES` can hide some.
    ///
    /// Fails where there is none, or no driver that works with this ROCm: [`HipError::Failed`] with HIP's code, 100
    /// (`hipErrorNoDevice`) or another.
    pub fn count() -> Result<usize, HipError> {
        let mut count = 0;
        // SAFETY: an integer to write to.
        check("hipGetDeviceCount", unsafe {
            api::hipGetDeviceCount(&mut count)
        })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The GPU with this index, counted from 0.
    ///
    /// Fails as [`HipDevice::count`] does, where there is no such GPU ([`HipError::NoSuchDevice`]), and where HIP does not
    /// say what kernels are to be compiled for ([`HipError::Unusable`]).
    pub fn new(index: usize) -> Result<Self, HipError> {
        let count = Self::count()?;
        let none = HipError::NoSuchDevice { index, count };
        let device = match c_int::try_from(index) {
            Ok(device) if index < count => device,
            _ => return Err(none),
        };
        let (mut memory, mut runtime) = (0, 0);
        // SAFETY: integers to write to.
        unsafe {
            let bytes = api::hipDeviceTotalMem(&mut memory, device);
            check("hipDeviceTotalMem", bytes)?;
            check(
                "hipRuntimeGetVersion",
                api::hipRuntimeGetVersion(&mut runtime),
            )?;
        }
        let unusable = |reason| HipError::Unusable { index, reason };
        let wave = attribute(device, api::WARP_SIZE)?;
        if wave != 32 && wave != 64 {
            return Err(unusable(format!(
                "it has waves of {wave} lanes, not 32 or 64"
            )));
        }
        Ok(Self(Arc::new(Description {
            index: device,
            name: name(device)?,
            target: target(device, runtime)?
                .ok_or_else(|| unusable("HIP does not name its target (gfx…)".to_owned()))?,
            wave: wave.unsigned_abs(),
            compute_units: attribute(device, api::MULTIPROCESSORS)?.unsigned_abs(),
            memory: memory as u64,
            runtime,
        })))
    }

    /// The index it was opened by.
    pub fn index(&self) -> usize {
        self.0.index.unsigned_abs() as usize
    }

    /// Its name in the shops, such as "AMD Instinct MI300X"; empty where the driver does not know it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What kernels are compiled for, such as "gfx942", without the features that follow a colon ("gfx90a:xnack-"): code for
    /// the target alone runs whatever their state.
    pub fn target(&self) -> &str {
        &self.0.target
    }

    /// Lanes of a wave: 32 on RDNA, 64 on CDNA and GCN.
    pub fn wave_size(&self) -> u32 {
        self.0.wave
    }

    /// Compute units; on RDNA work-group processors, which are two of them each.
    pub fn compute_units(&self) -> u32 {
        self.0.compute_units
    }

    /// Bytes of memory, in use or not.
    pub fn memory(&self) -> u64 {
        self.0.memory
    }

    /// For [`Current`].
    pub(super) fn number(&self) -> c_int {
        self.0.index
    }

    /// The version of the HIP runtime, major · 10⁷ + minor · 10⁵ + patch.
    pub(super) fn runtime(&self) -> c_int {
        self.0.runtime
    }

    /// Makes a call of HIP with this device current on this thread: the one way to call what depends on it.
    pub(super) fn call(
        &self,
        function: &'static str,
        call: impl FnOnce() -> c_int,
    ) -> Result<(), HipError> {
        let _current = Current::set(self.0.index)?;
        check(function, call())
    }
}

/// Calls a function of HIP on a device; to be used in an `unsafe` block.
macro_rules! hip {
    ($device:expr, $function:ident($($argument:expr),*)) => {
        $device.call(stringify!($function), || $crate::gpu::hip::api::$function($($argument),*))
    };
}
pub(super) use hip;

fn attribute(device: c_int, which: c_int) -> Result<c_int, HipError> {
    let mut value = 0;
    // SAFETY: an integer to write to.
    check("hipDeviceGetAttribute", unsafe {
        api::hipDeviceGetAttribute(&mut value, which, device)
    })?;
    Ok(value)
}

fn name(device: c_int) -> Result<String, HipError> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: as many bytes as are said, the last of which stays NUL.
    check("hipDeviceGetName", unsafe {
        api::hipDeviceGetName(name.as_mut_ptr(), 255, device)
    })?;
    // SAFETY: it ends in NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// What HIP says the device's target is.
///
/// No attribute tells it, only a field of the device's properties, a structure whose layout has changed with ROCm 6 and may
/// change again. So the layout is not used: the runtime writes the structure, whichever it has, into a buffer larger than
/// any, and the target is the string in it that looks like one.
fn target(device: c_int, runtime: c_int) -> Result<Option<String>, HipError> {
    /// Eight times the largest so far.
    #[repr(C, align(64))]
    struct Buffer([u8; 16384]);
    type GetProperties = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;

    let names = ["hipGetDevicePropertiesR0600", "hipGetDeviceProperties"];
    // SAFETY: both have this type; they differ in the structure that they write.
    let Some((name, get)) = (unsafe { api::find::<GetProperties>(runtime, &names) }) else {
        return Ok(None);
    };
    let mut buffer = Buffer([0; 16384]);
    // SAFETY: there is room for the structure, aligned as any may be.
    check(name, unsafe {
        get((&raw mut buffer.0).cast::<c_void>(), device)
    })?;
    Ok(target_in(&buffer.0))
}

/// The last string among `bytes` that is "gfx", a number, and a NUL or features.
fn target_in(bytes: &[u8]) -> Option<String> {
    let starts = (0..bytes.len()).rev();
    let mut targets = starts.filter_map(|start| {
        let rest = bytes[start..].strip_prefix(b"gfx")?;
        let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let ends = matches!(rest.get(digits), Some(0 | b':'));
        let target = bytes[start..][..3 + digits].to_vec();
        (digits > 0 && ends).then(|| String::from_utf8(target).ok())?
    });
    targets.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_wherever_they_are() {
        let found = |parts: &[&[u8]]| target_in(&parts.concat());
        let name: &[u8] = b"AMD Radeon\0\0\0\0";
        assert_eq!(
            found(&[name, b"\x8e\x03\0\0gfx90a:sramecc+:xnack-\0\0\0"]),
            Some("gfx90a".into())
        );
        assert_eq!(
            found(&[name, &[1; 999], b"gfx1100\0", &[7; 5]]),
            Some("gfx1100".into())
        );
        assert_eq!(
            found(&[b"gfx906\0", &[0; 250], b"gfx942\0"]),
            Some("gfx942".into())
        );
        assert_eq!(
            found(&[b"gfx90c\0", b"gfxcard\0gfx\0"]),
            Some("gfx90c".into())
        );
        assert_eq!(found(&[name, b"gfx\0gfx12"]), None);
        assert_eq!(found(&[&[0; 16384]]), None);
    }

    #[test]
    fn a_device_goes_to_any_thread() {
        fn anywhere<T: Send + Sync>() {}
        anywhere::<HipDevice>();
        anywhere::<HipError>();
        anywhere::<crate::Sampler>();
        anywhere::<crate::LogitsProcessor>();
    }

    #[test]
    fn devices_describe_themselves_or_are_missed() {
        let count = match HipDevice::count() {
            Ok(count) => count,
            Err(error) => {
                assert_eq!(HipDevice::new(0).unwrap_err(), error);
                let HipError::Failed { code, .. } = error else {
                    panic!("{error}")
                };
                let said = error.to_string();
                assert!(
                    said.starts_with("hipGetDeviceCount failed: hipError"),
                    "{said}"
                );
                assert!(
                    code != 100 || said.contains("no AMD GPU is visible"),
                    "{said}"
                );
                return;
            }
        };
        for index in 0..count {
            let device = HipDevice::new(index).unwrap();
            assert_eq!(device.index(), index);
            assert!(device.target().starts_with("gfx"), "{device:?}");
            assert!(device.memory() > 0 && device.compute_units() > 0);
        }
        let none = HipDevice::new(count).unwrap_err();
        let index = count;
        assert_eq!(none, HipError::NoSuchDevice { index, count });
    }
}
