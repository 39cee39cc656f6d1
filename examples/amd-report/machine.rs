//! The GPU, its software, and the machine around it.

use crate::device;
use candle_sampler::hip::HipDevice;

pub fn title(gpu: &HipDevice) -> String {
    match gpu.name() {
        "" => gpu.target().to_owned(),
        name => format!("{name} ({})", gpu.target()),
    }
}

/// A table; what is not known is left out.
pub fn print(gpu: &HipDevice) {
    let wave = gpu.wave_size();
    let (units, memory) = (gpu.compute_units(), gpu.memory() >> 20);
    let (runtime, driver) = device::versions();
    let lines = [
        ("candle-sampler", Some(env!("CARGO_PKG_VERSION").to_owned())),
        (
            "GPU",
            Some(format!("{}, number {}", title(gpu), gpu.index())),
        ),
        (
            "its size",
            Some(format!(
                "{units} compute units, waves of {wave}, {memory} MiB"
            )),
        ),
        ("HIP runtime", runtime.map(version)),
        ("HIP driver", driver.map(version)),
        ("ROCm", first_line("/opt/rocm/.info/version")),
        ("amdgpu", first_line("/sys/module/amdgpu/version")),
        ("Linux", first_line("/proc/sys/kernel/osrelease")),
        ("distribution", value("/etc/os-release", "PRETTY_NAME", '=')),
        ("CPU", value("/proc/cpuinfo", "model name", ':')),
    ];
    println!("| | |\n|---|---|");
    for (name, value) in lines {
        if let Some(value) = value {
            println!("| {name} | {value} |");
        }
    }
}

/// HIP's number for a version.
fn version(number: i32) -> String {
    let (major, minor, patch) = (
        number / 10_000_000,
        number / 100_000 % 100,
        number % 100_000,
    );
    format!("{major}.{minor}.{patch}")
}

fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// What follows a name in a file of names and values.
fn value(path: &str, name: &str, separator: char) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = lines.find(|(found, _)| found.trim() == name)?;
    Some(value.trim().trim_matches('"').to_owned())
}
