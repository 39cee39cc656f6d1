//! A test that needs an AMD GPU runs in a process of its own, where `tests/standin` takes the place of ROCm's libraries.
//!
//! The test starts this program again, for itself alone, and looks at how that ends.

use crate::library;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// Set where the stand-in is.
const INSIDE: &str = "CANDLE_SAMPLER_STANDIN";

/// A device with waves of 32 lanes, and one with 64.
pub const DEVICES: &str = "gfx1100:32,gfx90a:64";

/// As ROCm 5 calls it, which the stand-in says it is.
const RUNTIME: &str = "libamdhip64.so.5";

/// How ROCm comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// hipRTC is a library of its own.
    Apart,
    /// It is part of the runtime's, as in ROCm 5.
    Together,
    /// It is not there.
    NoCompiler,
}
const LAYOUTS: [Layout; 3] = [Layout::Apart, Layout::Together, Layout::NoCompiler];

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Begins a test: false where the stand-in is, and the test's body is to run. Outside, runs the test there, once for each setup:
/// a layout, and variables of the environment (an empty one is unset). `name` is the test's, with its module.
///
/// Skipped, with the reason, where the stand-in cannot be built; in CI that is a failure.
pub fn outside(name: &str, setups: &[(Layout, &[(&str, &str)])]) -> bool {
    if is_inside() {
        library::is_the_standin();
        return false;
    }
    if let Some(place) = place() {
        for (layout, variables) in setups {
            place.run(name, *layout, variables);
        }
    }
    true
}

/// What a process wrote.
pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// A file or folder beside the libraries, for one test.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("hip-standin")
        .join(name)
}

/// That the stand-in was built.
pub struct Place(());

/// The stand-in, built once; without it, the reason is printed.
pub fn place() -> Option<&'static Place> {
    static PLACE: LazyLock<Result<Place, String>> = LazyLock::new(Place::build);
    match &*PLACE {
        Ok(place) => Some(place),
        Err(reason) => {
            skip(reason);
            None
        }
    }
}

/// Where nobody reads what is printed, nothing is skipped.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "not skipped in CI: {reason}"
    );
    println!("skipped: {reason}");
}

fn libraries(layout: Layout) -> PathBuf {
    file(&format!("{layout:?}"))
}

/// The one that the stand-in's hipRTC uses, too.
fn compiler() -> Command {
    let words = std::env::var("CXX").unwrap_or_default();
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words);
    command
}

impl Place {
    fn build() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("the stand-in for HIP needs Linux on x86-64".to_owned());
        }
        let works = compiler().arg("--version").output();
        if !works.is_ok_and(|output| output.status.success()) {
            return Err(format!("no C++ compiler: {:?}", compiler()));
        }
        let place = Self(());
        let _ = std::fs::remove_dir_all(file(""));
        for layout in LAYOUTS {
            std::fs::create_dir_all(libraries(layout)).expect("a folder");
        }
        std::fs::create_dir_all(file("tmp")).expect("a folder");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = compile(Layout::Apart, RUNTIME, &["tests/standin/hip.cpp"]);
                let beside = libraries(Layout::NoCompiler).join(RUNTIME);
                std::fs::copy(&runtime, beside).expect("a copy");
                let runtime = runtime.to_str().expect("a plain path");
                let parts = ["tests/standin/hiprtc.cpp", runtime];
                compile(Layout::Apart, "libhiprtc.so", &parts);
            });
            let parts = ["tests/standin/hip.cpp", "tests/standin/hiprtc.cpp"];
            let parts = [&["-DSTANDIN_ROCM5"], &parts[..]].concat();
            compile(Layout::Together, RUNTIME, &parts);
        });
        // For programs that were linked to another ROCm.
        for layout in LAYOUTS {
            for version in [6, 7] {
                let name = format!("libamdhip64.so.{version}");
                std::os::unix::fs::symlink(RUNTIME, libraries(layout).join(name)).expect("a link");
            }
        }
        // Compiled kernels for all tests.
        std::thread::scope(|scope| {
            for device in DEVICES.split(',') {
                let devices = ("STANDIN_DEVICES", device);
                let place = &place;
                scope.spawn(move || {
                    place.run(
                        "kernels::compiled_at_first_use",
                        Layout::Together,
                        &[devices],
                    )
                });
            }
        });
        Ok(place)
    }

    /// Starts this program for one test, which must pass; returns what it wrote.
    pub fn run(&self, name: &str, layout: Layout, variables: &[(&str, &str)]) -> String {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args([name, "--exact", "--nocapture", "--test-threads", "1"]);
        self.prepare(&mut command, layout);
        for (name, value) in variables {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        let output = command.output().expect("this program starts");
        let said = text(&output);
        println!("{name}, {layout:?} {variables:?}\n{said}");
        let passed = said.contains("test result: ok. 1 passed");
        assert!(
            output.status.success() && passed,
            "{name}: {}\n{said}",
            output.status
        );
        said
    }

    /// Gives a process the stand-in's libraries, two devices, and a cache that all tests share.
    pub fn prepare(&self, command: &mut Command, layout: Layout) {
        let mut folders = vec![libraries(layout)];
        let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        folders.extend(std::env::split_paths(&others));
        let folders = std::env::join_paths(folders).expect("no colon");
        let harness = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness");
        command.env(INSIDE, "1").env("LD_LIBRARY_PATH", folders);
        command.env("STANDIN_DEVICES", DEVICES);
        command.env("STANDIN_HARNESS", harness);
        command.env("TMPDIR", file("tmp"));
        command.env("XDG_CACHE_HOME", file("cache"));
        for hidden in [
            "HIP_VISIBLE_DEVICES",
            "STANDIN_SEED",
            "STANDIN_MEMORY",
            "STANDIN_DRIVER",
        ] {
            command.env_remove(hidden);
        }
    }
}

fn compile(layout: Layout, name: &str, parts: &[&str]) -> PathBuf {
    let library = libraries(layout).join(name);
    let mut command = compiler();
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["-std=c++17", "-O1", "-fPIC", "-shared"]);
    command.arg("-Wl,--version-script=tests/standin/versions.map");
    command.arg(format!("-Wl,-soname,{name}")).args(parts);
    command.arg("-o").arg(&library).args(["-ldl", "-pthread"]);
    let output = command.output().expect("the compiler starts");
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    library
}
