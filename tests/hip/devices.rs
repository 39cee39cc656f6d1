//! What a GPU says of itself, and what is said where there is none.

use crate::library::{calls, live};
use crate::standin::{DEVICES, Layout, outside};
use candle_sampler::Sampler;
use candle_sampler::hip::{HipDevice, HipError};

#[test]
fn describe_themselves() {
    let setups = [Layout::Apart, Layout::Together].map(|layout| (layout, &[][..]));
    if outside("devices::describe_themselves", &setups) {
        return;
    }
    assert_eq!(HipDevice::count(), Ok(2), "{DEVICES}");
    for (index, target, wave) in [(0, "gfx1100", 32), (1, "gfx90a", 64)] {
        let gpu = HipDevice::new(index).expect("it is there");
        assert_eq!(gpu.index(), index);
        assert_eq!(gpu.name(), format!("Stand-in {target}"));
        // HIP says gfx90a:sramecc+:xnack-
        assert_eq!(gpu.target(), target);
        assert_eq!(gpu.wave_size(), wave);
        assert_eq!((gpu.compute_units(), gpu.memory()), (40, 1 << 30));
    }
    for index in [2, 3, usize::MAX] {
        let error = HipDevice::new(index).expect_err("there are two");
        assert_eq!(error, HipError::NoSuchDevice { index, count: 2 });
        let said = format!("there is no AMD GPU {index}: HIP sees 2, counted from 0");
        assert_eq!(error.to_string(), said);
    }
    // Nothing was started on them.
    assert_eq!(live(), 0);
    let started = ["Malloc", "Stream", "Module", "hipSetDevice", "hiprtc"];
    let calls = calls();
    assert!(
        !calls
            .iter()
            .any(|call| started.iter().any(|s| call.contains(s))),
        "{calls:?}"
    );
}

/// That no GPU can be had, and HIP's code and our advice.
fn nothing_to_open(code: i32, name: &str, advice: &str) {
    let error = HipDevice::count().expect_err("nothing can be opened");
    assert_eq!(HipDevice::new(0).expect_err("the same"), error);
    let said = error.to_string();
    let begin = format!("hipGetDeviceCount failed: {name} ({code})");
    assert!(
        said.starts_with(&begin) && said.contains(advice) && !said.contains('\n'),
        "{said}"
    );
    assert!(matches!(error, HipError::Failed { code: c, .. } if c == code));
}

#[test]
fn none_is_an_error_that_says_what_to_look_at() {
    let setup = (Layout::Apart, &[("STANDIN_DEVICES", "")][..]);
    if outside(
        "devices::none_is_an_error_that_says_what_to_look_at",
        &[setup],
    ) {
        return;
    }
    nothing_to_open(100, "hipErrorNoDevice", "is the amdgpu driver loaded");
}

#[test]
fn an_old_driver_is_named() {
    let setup = (Layout::Apart, &[("STANDIN_DRIVER", "old")][..]);
    if outside("devices::an_old_driver_is_named", &[setup]) {
        return;
    }
    nothing_to_open(35, "hipErrorInsufficientDriver", "update the driver");
}

/// With ROCm's own library.
#[test]
fn a_machine_without_a_gpu_says_so() {
    match HipDevice::new(0) {
        Ok(gpu) => println!("skipped: there is a GPU, {}", gpu.name()),
        Err(_) => nothing_to_open(100, "hipErrorNoDevice", "no AMD GPU is visible"),
    }
    // Samplers stay on the CPU then.
    assert_eq!(Sampler::new(&[]).expect("no rows").batch_size(), 0);
}
