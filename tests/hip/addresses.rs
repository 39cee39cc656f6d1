//! Rows in a GPU's memory, drawn in the order of the user's streams.

use crate::common::{batch_of, mixed, sources};
use crate::library::{
    Address, Memory, Stream, calls_of, current_device, live, set_device, synchronize,
};
use crate::standin::{Layout, outside};
use crate::tokens::{ORDERS, ids};
use candle_core::{DType, Result, Tensor};
use candle_sampler::Sampler;
use candle_sampler::hip::{DeviceLogits, HipDevice};
use std::ptr::null_mut;

/// The bytes of logits, `stride` apart, after `before` others; NaN in between.
fn bytes(logits: &Tensor, before: usize, stride: usize) -> Result<Vec<u8>> {
    let (rows, vocab) = logits.dims2()?;
    let mut all = vec![f32::NAN; before + rows * stride];
    let values = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for (row, values) in values.iter().enumerate() {
        all[before + row * stride..][..vocab].copy_from_slice(values);
    }
    let bytes = |x: f32| match logits.dtype() {
        DType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    Ok(all.into_iter().flat_map(bytes).collect())
}

/// Logits on the current device, as a user describes them.
pub fn upload(logits: &Tensor, before: usize, stride: usize) -> Result<(Memory, DeviceLogits)> {
    let memory = Memory::with(&bytes(logits, before, stride)?);
    let (dtype, (rows, vocab)) = (logits.dtype(), logits.dims2()?);
    let address = memory
        .start
        .wrapping_byte_add(before * dtype.size_in_bytes());
    let given = DeviceLogits {
        address,
        dtype,
        rows,
        vocab,
        stride,
    };
    Ok((memory, given))
}

const STEPS: usize = 8;

#[test]
fn give_the_cpus_tokens() -> Result<()> {
    let setups = ORDERS.map(|order| (Layout::Together, order));
    if outside("addresses::give_the_cpus_tokens", &setups) {
        return Ok(());
    }
    let (rows, vocab) = (3, 2000);
    for (index, dtype, before, stride) in [
        (0, DType::F32, 0, vocab),
        (1, DType::F32, 3, vocab + 13),
        (1, DType::F16, 1, vocab + 1),
        (0, DType::BF16, 5, vocab + 7),
    ] {
        set_device(index);
        let (alone, ordered) = (Stream::new(false), Stream::new(true));
        let logits = batch_of(&sources(vocab), rows).to_dtype(dtype)?;
        let (_memory, given) = upload(&logits, before, stride)?;
        let drawn = Memory::new(STEPS * rows * 4);
        let params = mixed(rows, vocab);
        let mut cpu = Sampler::new(&params)?;
        let mut hip = Sampler::new(&params)?.on_hip(&HipDevice::new(index)?)?;
        let mut want = Vec::new();
        // One draw after the other, on any stream, and nobody waits.
        for step in 0..STEPS {
            let stream = [alone.0, ordered.0, null_mut(), ordered.0][step % 4];
            let moved = step == 5;
            for sampler in [&mut cpu, &mut hip] {
                sampler.set_position(2, if moved { 77 } else { sampler.position(2) });
            }
            // A null stream is the current device's.
            let current = if stream.is_null() { index } else { 1 - index };
            set_device(current);
            let to = drawn.start.cast::<u32>().wrapping_add(step * rows);
            // SAFETY: all of it is on the device, and stays until the streams have come by.
            let (mut calls, drawn) = calls_of(|| unsafe { hip.sample_device(given, to, stream) });
            drawn?;
            assert_eq!(current_device(), current);
            assert_eq!(hip.position(0), 1 + step as u64);
            calls.retain(|call| call != "hipGetDevice" && call != "hipSetDevice");
            let waits = |call: &String| call.contains("Synchronize") || call == "hipFree";
            assert!(!calls.iter().any(waits), "{calls:?}");
            let steady = [
                "hipStreamWaitEvent",
                "hipModuleLaunchKernel",
                "hipModuleLaunchKernel",
                "hipEventRecord",
            ];
            assert!(calls == steady || step == 0 || moved, "{calls:?}");
            want.extend(ids(&mut cpu, &logits)?);
        }
        set_device(index);
        // The last stream waits for the others.
        assert_eq!(drawn.read(ordered.0), want, "{given:?}");
        // The same sampler draws rows of the host.
        assert_eq!(ids(&mut hip, &logits)?, ids(&mut cpu, &logits)?);
        for stream in [alone.0, ordered.0, null_mut()] {
            synchronize(stream);
        }
    }
    assert_eq!(live(), 4, "kernels of each");
    Ok(())
}

#[test]
fn outlive_the_sampler() -> Result<()> {
    if outside("addresses::outlive_the_sampler", &[(Layout::Apart, &[])]) {
        return Ok(());
    }
    let (logits, params) = (batch_of(&sources(1000), 3), mixed(3, 1000));
    let (_memory, given) = upload(&logits, 0, 1000)?;
    let (drawn, stream) = (Memory::new(3 * 4), Stream::new(false));
    let mut hip = Sampler::new(&params)?.on_hip(&HipDevice::new(0)?)?;
    // SAFETY: all of it is on the device, and stays until the stream has come by.
    unsafe { hip.sample_device(given, drawn.start.cast(), stream.0) }?;
    drop(hip);
    let want = ids(&mut Sampler::new(&params)?, &logits)?;
    assert_eq!(drawn.read(stream.0), want);
    Ok(())
}

#[test]
fn mistakes_are_errors() -> Result<()> {
    if outside("addresses::mistakes_are_errors", &[(Layout::Together, &[])]) {
        return Ok(());
    }
    let (logits, params) = (batch_of(&sources(500), 4), mixed(4, 500));
    let (_memory, good) = upload(&logits, 0, 500)?;
    let (drawn, none): (_, Address) = (Memory::new(4 * 4), null_mut());
    let mut cpu = Sampler::new(&params)?;
    let mut hip = Sampler::new(&params)?.on_hip(&HipDevice::new(0)?)?;
    let with = |change: fn(&mut DeviceLogits)| {
        let mut given = good;
        change(&mut given);
        given
    };
    let to = drawn.start.cast::<u32>();
    for (given, to, expected) in [
        (
            with(|x| x.dtype = DType::F64),
            to,
            "expected F32, F16 or BF16",
        ),
        (
            with(|x| x.rows = 3),
            to,
            "the sampler has 4 rows, the logits 3",
        ),
        (with(|x| x.vocab = 0), to, "expected 1 to 16777216"),
        (with(|x| x.vocab = 16777217), to, "expected 1 to 16777216"),
        (with(|x| x.address = null_mut()), to, "is null"),
        (good, null_mut(), "is null"),
    ] {
        // SAFETY: nothing is drawn.
        let (calls, drawn) = calls_of(|| unsafe { hip.sample_device(given, to, none) });
        let error = drawn.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(calls.is_empty(), "{calls:?}");
        assert_eq!(hip.position(0), 0);
    }
    // SAFETY: nothing is drawn.
    let error = unsafe { cpu.sample_device(good, to, none) }.expect_err("on no GPU");
    assert!(error.to_string().contains("Sampler::on_hip"), "{error}");
    // What is no stream HIP finds out, or at least the stand-in.
    // SAFETY: nothing is drawn.
    let error = unsafe { hip.sample_device(good, to, drawn.start) }.expect_err("no stream");
    let expected = "hipErrorInvalidHandle (400)";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(hip.position(0), 0);
    // SAFETY: all of it is on the device, and stays until the stream has come by.
    unsafe { hip.sample_device(good, to, none) }?;
    assert_eq!(drawn.read(none), ids(&mut cpu, &logits)?);
    Ok(())
}
