//! What one has on a device: memory, streams, events. Each is given back when it is dropped.

use super::HipDevice;
use super::api::{self, Current, Handle, HipError, check};
use super::device::hip;
use candle_core::WithDType;
use std::ffi::{c_int, c_void};

/// Gives something back: with its device current, if that can be had. A device that fails here fails at the next call as well,
/// where it can be said.
///
/// # Safety
///
/// `free` must be for `what`, which nobody may use any more.
unsafe fn give_back(device: &HipDevice, what: Handle, free: unsafe extern "C" fn(Handle) -> c_int) {
    let _current = Current::set(device.number());
    // SAFETY: the caller vouches for it.
    let _ = check("giving back", unsafe { free(what) });
}

/// Memory on a device. HIP waits for the device before it frees it.
#[derive(Debug)]
pub(crate) struct Memory {
    device: HipDevice,
    pub(super) start: Handle,
}

impl Memory {
    pub(super) fn new(device: &HipDevice, bytes: usize) -> Result<Self, HipError> {
        let mut start = Handle::NULL;
        // SAFETY: an address to write to.
        unsafe { hip!(device, hipMalloc(&mut start, bytes)) }?;
        let device = device.clone();
        Ok(Self { device, start })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once.
        unsafe { give_back(&self.device, self.start, api::hipFree) };
    }
}

/// Memory of the host that the device reads and writes by itself. Nothing may be on its way when it is dropped.
#[derive(Debug)]
pub(super) struct Pinned {
    device: HipDevice,
    pub(super) start: Handle,
    pub(super) bytes: usize,
}

impl Pinned {
    pub(super) fn new(device: &HipDevice, bytes: usize) -> Result<Self, HipError> {
        let mut start = Handle::NULL;
        // SAFETY: an address to write to.
        unsafe { hip!(device, hipHostMalloc(&mut start, bytes, 0)) }?;
        Ok(Self {
            device: device.clone(),
            start,
            bytes,
        })
    }

    /// Copies values to where `at` bytes have gone before.
    pub(super) fn write<T: WithDType>(&mut self, at: usize, values: &[T]) {
        let bytes = size_of_val(values);
        assert!(at + bytes <= self.bytes);
        // SAFETY: there is room, as just checked, and the values are plain memory.
        unsafe {
            let to = self.start.offset(at).0.cast::<u8>();
            std::ptr::copy_nonoverlapping(values.as_ptr().cast(), to, bytes);
        }
    }

    /// The first integers, which the device has written.
    pub(super) fn read_u32(&self, count: usize) -> Vec<u32> {
        assert!(count * size_of::<u32>() <= self.bytes);
        // SAFETY: so many are there, on the boundary of a page.
        unsafe { std::slice::from_raw_parts(self.start.0.cast::<u32>(), count) }.to_vec()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once.
        unsafe { give_back(&self.device, self.start, api::hipHostFree) };
    }
}

/// A stream of its own, which does not wait for the null stream.
#[derive(Debug)]
pub(super) struct Stream {
    device: HipDevice,
    pub(super) handle: Handle,
}

impl Stream {
    pub(super) fn new(device: &HipDevice) -> Result<Self, HipError> {
        let mut handle = Handle::NULL;
        // SAFETY: a handle to write to.
        unsafe {
            hip!(
                device,
                hipStreamCreateWithFlags(&mut handle, api::NON_BLOCKING)
            )
        }?;
        let device = device.clone();
        Ok(Self { device, handle })
    }

    /// Copies between pinned memory and the device, in the order of the stream.
    ///
    /// # Safety
    ///
    /// Both must have so many bytes, which stay and which nobody touches until the stream has come by.
    pub(super) unsafe fn copy(
        &self,
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
    ) -> Result<(), HipError> {
        // SAFETY: the caller vouches for the memory; the stream is alive.
        unsafe {
            hip!(
                self.device,
                hipMemcpyAsync(to, from, bytes, kind, self.handle)
            )
        }
    }

    /// Waits until the stream has nothing left to do. What failed on the way is said here.
    pub(super) fn wait(&self) -> Result<(), HipError> {
        // SAFETY: the stream is alive.
        unsafe { hip!(self.device, hipStreamSynchronize(self.handle)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once.
        unsafe { give_back(&self.device, self.handle, api::hipStreamDestroy) };
    }
}

/// A point in a stream's work for which other streams can wait.
#[derive(Debug)]
pub(super) struct Event {
    device: HipDevice,
    handle: Handle,
}

impl Event {
    pub(super) fn new(device: &HipDevice) -> Result<Self, HipError> {
        let mut handle = Handle::NULL;
        // SAFETY: a handle to write to.
        unsafe { hip!(device, hipEventCreateWithFlags(&mut handle, api::NO_TIMING)) }?;
        let device = device.clone();
        Ok(Self { device, handle })
    }

    /// Moves the point behind what the stream has been given so far.
    ///
    /// # Safety
    ///
    /// The stream must be alive and the device's.
    pub(super) unsafe fn record(&self, stream: Handle) -> Result<(), HipError> {
        // SAFETY: the event is alive, and so is the stream.
        unsafe { hip!(self.device, hipEventRecord(self.handle, stream)) }
    }

    /// Lets what the stream is given from now on wait for the point; for nothing, where it was never recorded or has passed.
    ///
    /// # Safety
    ///
    /// The stream must be alive and the device's.
    pub(super) unsafe fn precede(&self, stream: Handle) -> Result<(), HipError> {
        // SAFETY: as above; 0 are the only flags that there are.
        unsafe { hip!(self.device, hipStreamWaitEvent(stream, self.handle, 0)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once.
        unsafe { give_back(&self.device, self.handle, api::hipEventDestroy) };
    }
}
