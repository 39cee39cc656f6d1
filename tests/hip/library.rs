//! The functions of HIP that a user calls, and those by which a test controls the stand-in.

use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

pub type Address = *mut c_void;

unsafe extern "C" {
    fn hipSetDevice(device: c_int) -> c_int;
    fn hipGetDevice(device: *mut c_int) -> c_int;
    fn hipGetLastError() -> c_int;
    fn hipMalloc(memory: *mut Address, bytes: usize) -> c_int;
    fn hipFree(memory: Address) -> c_int;
    fn hipMemcpyAsync(
        to: Address,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
        stream: Address,
    ) -> c_int;
    fn hipStreamCreateWithFlags(stream: *mut Address, flags: c_uint) -> c_int;
    fn hipStreamDestroy(stream: Address) -> c_int;
    fn hipStreamSynchronize(stream: Address) -> c_int;
}

// ---- What a user has. ----

fn check(code: c_int) {
    assert_eq!(code, 0, "a call of the test's own failed");
}

/// Makes a device this thread's current one.
pub fn set_device(device: usize) {
    // SAFETY: HIP checks the index.
    check(unsafe { hipSetDevice(device as c_int) });
}

pub fn current_device() -> usize {
    let mut device = -1;
    // SAFETY: an integer to write to.
    check(unsafe { hipGetDevice(&mut device) });
    usize::try_from(device).expect("an index")
}

/// What `hipGetLastError` says.
pub fn last_error() -> c_int {
    // SAFETY: it takes nothing.
    unsafe { hipGetLastError() }
}

/// Memory of a device.
pub struct Memory {
    pub start: Address,
    pub bytes: usize,
}

impl Memory {
    /// On the current device.
    pub fn new(bytes: usize) -> Self {
        let mut start = null_mut();
        // SAFETY: an address to write to.
        check(unsafe { hipMalloc(&mut start, bytes) });
        Self { start, bytes }
    }

    /// The same with these values, which are there when this returns.
    pub fn with<T: Copy>(values: &[T]) -> Self {
        let memory = Self::new(size_of_val(values));
        memory.write(values);
        memory
    }

    /// Puts values there, in the order of the null stream, and waits.
    pub fn write<T: Copy>(&self, values: &[T]) {
        let (from, bytes) = (values.as_ptr().cast(), size_of_val(values));
        assert!(bytes <= self.bytes);
        // SAFETY: there is room; the null stream needs no handle.
        check(unsafe { hipMemcpyAsync(self.start, from, bytes, 1, null_mut()) });
        synchronize(null_mut());
    }

    /// What is there when `stream` comes by.
    pub fn read(&self, stream: Address) -> Vec<u32> {
        let mut values = vec![0u32; self.bytes / 4];
        let to = values.as_mut_ptr().cast();
        // SAFETY: there is room, and the stream is waited for.
        check(unsafe { hipMemcpyAsync(to, self.start, self.bytes, 2, stream) });
        synchronize(stream);
        values
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made above, dropped once.
        check(unsafe { hipFree(self.start) });
    }
}

/// A stream of the current device.
pub struct Stream(pub Address);

impl Stream {
    /// Not `blocking`, it does not wait for the null stream.
    pub fn new(blocking: bool) -> Self {
        let mut stream = null_mut();
        // SAFETY: a handle to write to.
        check(unsafe { hipStreamCreateWithFlags(&mut stream, u32::from(!blocking)) });
        Self(stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made above, dropped once.
        check(unsafe { hipStreamDestroy(self.0) });
    }
}

pub fn synchronize(stream: Address) {
    // SAFETY: the stream is alive.
    check(unsafe { hipStreamSynchronize(stream) });
}

// ---- The stand-in's. ----

/// A function that ROCm does not have.
fn control<F: Copy>(name: &str) -> F {
    // SAFETY: whoever calls this gives the function's type, which is in tests/standin/gate.h and hip.cpp.
    match unsafe { Library::this().get::<F>(name.as_bytes()) } {
        Ok(function) => *function,
        Err(error) => panic!("this program runs with another HIP than the stand-in: {error}"),
    }
}

pub fn is_the_standin() {
    calls();
}

/// The names of the calls since the last [`reset`].
pub fn calls() -> Vec<String> {
    let count = control::<extern "C" fn() -> u64>("standin_calls")();
    let name = control::<extern "C" fn(u64) -> *const c_char>("standin_call");
    // SAFETY: strings that end in NUL and stay until the next reset.
    let text = |i| unsafe { CStr::from_ptr(name(i)) };
    let text = |i| text(i).to_string_lossy().into_owned();
    (0..count).map(text).collect()
}

/// The calls of a function, and how it ended.
pub fn calls_of<T>(function: impl FnOnce() -> T) -> (Vec<String>, T) {
    let before = calls().len();
    let result = function();
    (calls().split_off(before), result)
}

/// The call of that number, counted from the last reset, will fail with `code` and do nothing.
pub fn fail_at(call: usize, code: i32) {
    control::<extern "C" fn(u64, c_int)>("standin_fail_at")(call as u64, code);
}

/// What the call of that number queues will fail with `code` when it is executed, and the device is lost.
pub fn fail_async(call: usize, code: i32) {
    control::<extern "C" fn(u64, c_int)>("standin_fail_async")(call as u64, code);
}

/// Forgets calls and faults; lost devices are back.
pub fn reset() {
    control::<extern "C" fn()>("standin_reset")();
}

/// How many allocations, streams, events and modules there are.
pub fn live() -> usize {
    control::<extern "C" fn() -> c_int>("standin_live")() as usize
}
