//! Every call of HIP fails once: it is said, nothing is drawn, the next call draws what this one should have, and all is
//! given back.

use crate::addresses::upload;
use crate::common::{batch_of, mixed, sources};
use crate::library::{
    Memory, Stream, calls, current_device, fail_async, fail_at, last_error, live, reset, set_device,
};
use crate::standin::{Layout, is_inside, outside, place};
use crate::tokens::ids;
use candle_core::{Result, Tensor};
use candle_sampler::Sampler;
use candle_sampler::hip::{DeviceLogits, HipDevice};
use std::collections::BTreeMap;

/// Out of memory, a lost device, a failed launch.
const CODES: [(i32, &str); 3] = [
    (2, "hipErrorOutOfMemory"),
    (709, "hipErrorContextIsDestroyed"),
    (719, "hipErrorLaunchFailure"),
];

/// All of them where the queues wait; one where they get ahead.
fn codes() -> &'static [(i32, &'static str)] {
    let ahead = std::env::var_os("STANDIN_SEED").is_some();
    if ahead { &CODES[2..] } else { &CODES }
}

const AHEAD: &[(&str, &str)] = &[("STANDIN_SEED", "5")];

/// A device that is not the thread's current one.
const INDEX: usize = 1;

const VOCAB: usize = 600;

/// Draws: the third from the GPU's memory, the others from the host's.
const STEPS: usize = 4;
const FROM_THE_GPU: usize = 2;

struct Scene {
    logits: Tensor,
    want: Vec<Vec<u32>>,
    given: DeviceLogits,
    _memory: Memory,
    drawn: Memory,
    stream: Stream,
}

impl Scene {
    fn new() -> Result<Self> {
        let logits = batch_of(&sources(VOCAB), 1);
        let mut cpu = Sampler::new(&mixed(1, VOCAB))?;
        let want = (0..STEPS).map(|_| ids(&mut cpu, &logits));
        let want = want.collect::<Result<_>>()?;
        set_device(INDEX);
        let (_memory, given) = upload(&logits, 0, VOCAB)?;
        let (drawn, stream) = (Memory::new(4), Stream::new(false));
        set_device(0);
        Ok(Self {
            logits,
            want,
            given,
            _memory,
            drawn,
            stream,
        })
    }

    fn put(&self, gpu: &HipDevice) -> Result<Sampler> {
        Sampler::new(&mixed(1, VOCAB))?.on_hip(gpu)
    }

    /// What is on the host afterwards is right.
    fn step(&self, hip: &mut Sampler, step: usize) -> Result<()> {
        assert_eq!(hip.position(0), step as u64, "what failed does not count");
        if step == FROM_THE_GPU {
            let to = self.drawn.start.cast();
            // SAFETY: all of it is on the device, and stays.
            return unsafe { hip.sample_device(self.given, to, self.stream.0) };
        }
        assert_eq!(ids(hip, &self.logits)?, self.want[step]);
        Ok(())
    }

    /// From opening the device to dropping everything. What fails is tried again; returns what it said.
    fn run(&self) -> Vec<String> {
        let mut said = Vec::new();
        let gpu = attempt(&mut said, || Ok(HipDevice::new(INDEX)?));
        let mut hip = attempt(&mut said, || self.put(&gpu));
        for step in 0..STEPS {
            attempt(&mut said, || self.step(&mut hip, step));
        }
        said
    }

    /// That the id which stayed on the GPU was right; now there is another in its place.
    fn check_drawn(&self) {
        set_device(INDEX);
        assert_eq!(self.drawn.read(self.stream.0), self.want[FROM_THE_GPU]);
        self.drawn.write(&[u32::MAX - 1]);
        set_device(0);
    }
}

fn attempt<T>(said: &mut Vec<String>, mut function: impl FnMut() -> Result<T>) -> T {
    loop {
        match function() {
            Ok(result) => return result,
            Err(error) => said.push(error.to_string()),
        }
        assert!(said.len() < 3, "one fault makes one error: {said:?}");
    }
}

/// What is called when something is dropped. A failure leaks it, and nobody is told.
const GIVES_BACK: [&str; 4] = [
    "hipFree",
    "hipHostFree",
    "hipEventDestroy",
    "hipStreamDestroy",
];

/// Whether a failure of the call may go unsaid: where something is dropped, and where the thread's device is put back.
fn is_tolerated(calls: &[String], at: usize) -> bool {
    let is = |at: usize, name: &str| calls.get(at).is_some_and(|call| call == name);
    let drops = |at: usize| GIVES_BACK.iter().any(|name| is(at, name));
    match calls[at].as_str() {
        "hipGetDevice" => drops(at + 1) || drops(at + 2),
        "hipSetDevice" => drops(at + 1) || !is(at - 1, "hipGetDevice"),
        _ => drops(at),
    }
}

#[test]
fn of_every_call() -> Result<()> {
    let setups = [(Layout::Together, &[][..]), (Layout::Apart, AHEAD)];
    if outside("faults::of_every_call", &setups) {
        return Ok(());
    }
    let scene = Scene::new()?;
    assert_eq!(scene.run(), [""; 0]);
    reset();
    scene.run();
    let all = calls();
    scene.check_drawn();
    let mut unsaid = BTreeMap::new();
    for (code, name) in codes() {
        for (at, call) in all.iter().enumerate() {
            let before = live();
            reset();
            fail_at(at, *code);
            let said = scene.run();
            assert_eq!(calls()[at], *call);
            reset();
            match said.as_slice() {
                [] if is_tolerated(&all, at) => *unsaid.entry(call).or_insert(0) += 1,
                [error] => {
                    let expected = format!("{call} failed: {name} ({code})");
                    assert!(error.starts_with(&expected), "call {at}, {call}: {error}");
                }
                _ => panic!("call {at}, {call}, with {code}: {said:?}"),
            }
            let leaked = usize::from(GIVES_BACK.contains(&call.as_str()));
            assert_eq!(live(), before + leaked, "call {at}, {call}");
            assert_eq!(
                last_error(),
                0,
                "call {at}, {call}: the program would find it"
            );
            let moved = call == "hipSetDevice" && said.is_empty();
            assert!(current_device() == 0 || moved, "call {at}, {call}");
            scene.check_drawn();
        }
    }
    println!("{} calls; unsaid: {unsaid:?}", all.len());
    Ok(())
}

/// What was queued fails later, and takes the device with it.
#[test]
fn of_what_is_queued() -> Result<()> {
    let setups = [(Layout::Apart, &[][..]), (Layout::Together, AHEAD)];
    if outside("faults::of_what_is_queued", &setups) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let other = HipDevice::new(1 - INDEX)?;
    scene.step(&mut scene.put(&other)?, 0)?;
    scene.run();
    let before = live();
    reset();
    scene.run();
    let all = calls();
    let mut lost = BTreeMap::new();
    for (code, name) in codes() {
        let is_said = |error: candle_core::Error| {
            let (said, expected) = (error.to_string(), format!(" failed: {name} ({code})"));
            assert!(said.contains(&expected), "{said}");
        };
        for (at, call) in all.iter().enumerate() {
            reset();
            fail_async(at, *code);
            let gpu = HipDevice::new(INDEX)?;
            let mut hip = scene.put(&gpu)?;
            // What fails behind the last step's back is nothing that it needs.
            let failed = (0..STEPS).find_map(|i| Some((i, scene.step(&mut hip, i).err()?)));
            let Some((step, error)) = failed else {
                continue;
            };
            *lost.entry(call.as_str()).or_insert(0) += 1;
            is_said(error);
            // From now on everything fails, and says why, but on the other GPU.
            is_said(scene.step(&mut hip, step).expect_err("the device is lost"));
            let fresh = HipDevice::new(INDEX).map_err(Into::into);
            let fresh = fresh.and_then(|gpu| scene.put(&gpu));
            is_said(fresh.expect_err("the device is lost"));
            scene.step(&mut scene.put(&other)?, 0)?;
            assert_eq!((current_device(), last_error()), (0, 0));
            // The device comes back: the sampler goes on, and new ones work.
            reset();
            for step in step..STEPS {
                scene.step(&mut hip, step)?;
            }
            drop(hip);
            scene.step(&mut scene.put(&HipDevice::new(INDEX)?)?, 0)?;
            assert_eq!(live(), before, "call {at}, {call}");
            if step <= FROM_THE_GPU {
                scene.check_drawn();
            }
        }
    }
    println!("lost: {lost:?}");
    for call in ["hipMemcpyAsync", "hipModuleLaunchKernel"] {
        assert!(lost[call] >= 6, "{lost:?}");
    }
    Ok(())
}

/// Kernels are loaded once a process, so each of these faults needs one of its own.
#[test]
fn of_calls_made_once() -> Result<()> {
    const NAME: &str = "faults::of_calls_made_once";
    if is_inside() {
        let scene = Scene::new()?;
        let before = live();
        reset();
        let fault = std::env::var("FAULT").expect("which");
        if let Some((at, code)) = fault.split_once(':') {
            let number = |text: &str| text.parse::<u16>().expect("a number");
            fail_at(number(at).into(), number(code).into());
        }
        println!("said: {}", scene.run().join(""));
        calls().iter().for_each(|call| println!("call: {call}"));
        reset();
        assert_eq!(live(), before + 1, "the kernels stay");
        scene.check_drawn();
        return Ok(());
    }
    let Some(place) = place() else {
        return Ok(());
    };
    let run = |fault: &str| place.run(NAME, Layout::Together, &[("FAULT", fault)]);
    let output = run("none");
    let all = output
        .lines()
        .filter_map(|line| line.strip_prefix("call: "));
    let all: Vec<&str> = all.collect();
    let once = ["hiprtcVersion", "hipModuleLoadData", "hipModuleGetFunction"];
    assert!(once.iter().all(|name| all.contains(name)), "{all:?}");
    for (at, call) in all.iter().enumerate() {
        if !once.contains(call) {
            continue;
        }
        for (code, name) in CODES {
            let output = run(&format!("{at}:{code}"));
            // hipRTC has other codes.
            let expected = match *call {
                "hiprtcVersion" => "said: hiprtcVersion failed: ".to_owned(),
                _ => format!("said: {call} failed: {name} ({code})"),
            };
            assert!(output.contains(&expected), "{expected}: {output}");
        }
    }
    Ok(())
}
