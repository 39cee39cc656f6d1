//! The GPU kernels against the Rust reference, bit for bit, on a machine without a GPU.
//!
//! `tests/harness` compiles the very files of `kernels/` with the host's C++ compiler and runs whole grids on one CPU
//! thread, under AddressSanitizer and UndefinedBehaviourSanitizer, in waves of 32 and 64 lanes. The order in which lanes,
//! waves and blocks run is drawn from a seed; a result must not change with it.

mod case;
mod rows;

use case::Case;
use rows::{CASES, SAMPLING, waiting_draws, waiting_ops};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Asks for what `tests/harness/races.h` tells.
const RACES: &str = "-DRACES";

/// A folder with the compiled harness and a file of cases; gone when dropped.
struct Harness {
    folder: PathBuf,
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Harness {
    /// `None`, with the reason on standard output, where it cannot be compiled.
    fn compile(name: &str, wave: u32, flags: &[&str]) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = root.join("tests/harness/main.cpp");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let reason = if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            "the harness is written for Linux on x86-64"
        } else if !source.exists() {
            "the published crate has no harness"
        } else if Command::new(&compiler).arg("--version").output().is_err() {
            "no C++ compiler"
        } else {
            let folder = format!("candle-sampler-{}-{name}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let harness = Self { folder };
            let [object, program] = ["harness.o", "harness"].map(|f| harness.folder.join(f));
            let compile = |flags: &[&str], from: &[&Path], to: &Path| {
                let out = Command::new(&compiler)
                    .args(
                        "-std=c++17 -O1 -g -ffp-contract=off -Wall -Wextra -Werror -Wno-attributes"
                            .split(' '),
                    )
                    .args(flags)
                    .arg(format!("-DWAVE={wave}"))
                    .args(["-Ikernels", "-Itests/harness", "-o"])
                    .arg(to)
                    .args(from)
                    .current_dir(root)
                    .output()
                    .unwrap();
                let errors = String::from_utf8_lossy(&out.stderr);
                assert!(out.status.success(), "{errors}");
            };
            if flags.contains(&RACES) {
                // What the instrumented code calls is ours, and not instrumented.
                let with = [flags, &["-fsanitize=thread", "-no-pie", "-c"]].concat();
                compile(&with, &[&source], &object);
                let races = root.join("tests/harness/races.cpp");
                compile(&[RACES, "-no-pie"], &[&object, &races], &program);
            } else {
                compile(flags, &[&source], &program);
            }
            return Some(harness);
        };
        println!("skipped: {reason}");
        None
    }

    fn write(&self, cases: &[Case]) {
        let input: Vec<u8> = cases.iter().flat_map(|c| c.input.clone()).collect();
        std::fs::write(self.folder.join("cases"), input).unwrap();
    }

    /// The results of all cases, or why there are none.
    fn run(&self, seed: u64, without: &[String]) -> Result<Vec<u8>, String> {
        let out = Command::new(self.folder.join("harness"))
            .arg(self.folder.join("cases"))
            .arg(seed.to_string())
            .args(without)
            .output()
            .unwrap();
        if out.status.success() {
            return Ok(out.stdout);
        }
        let errors = String::from_utf8_lossy(&out.stderr);
        Err(format!("{}: {errors}", out.status))
    }
}

/// What draws from few rows; from some; and from many, with a margin for which nothing that is asked of tries is clear before it is summed exactly.
const FEW: &[&str] = &[];
const SOME: &[&str] = &["-DROWS=SOME_ROWS"];
const MANY: &[&str] = &["-DROWS=MANY_ROWS", "-DMARGIN_BITS=1"];

fn check(wave: u32, unit: &[&str]) {
    let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let flags = [&sanitizers, unit].concat();
    let name = format!("wave-{wave}{}", unit.concat());
    let Some(harness) = Harness::compile(&name, wave, &flags) else {
        return;
    };
    // The other units have no other kernels.
    let cases = &CASES[..if unit == FEW { CASES.len() } else { *SAMPLING }];
    harness.write(cases);
    for seed in 1..4 {
        let got = harness.run(seed, &[]).unwrap_or_else(|e| panic!("{e}"));
        let mut got = got.as_slice();
        for case in cases {
            let (mine, rest) = got.split_at(case.want.len());
            got = rest;
            let pairs = mine.chunks(case.width).zip(case.want.chunks(case.width));
            for (i, (got, want)) in pairs.enumerate() {
                let Case { name, rows, .. } = case;
                let row = rows.get(i).map_or("", String::as_str);
                assert!(
                    got == want,
                    "{name}, wave {wave}, {unit:?}, order {seed}: result {i} is {got:x?}, not {want:x?} {row}"
                );
            }
        }
        assert!(got.is_empty());
    }
}

#[test]
fn kernels_equal_the_reference_in_waves_of_32() {
    check(32, FEW);
}

#[test]
fn kernels_equal_the_reference_in_waves_of_64() {
    check(64, FEW);
}

#[test]
fn kernels_for_some_rows_equal_the_reference_in_waves_of_32() {
    check(32, SOME);
}

#[test]
fn kernels_for_some_rows_equal_the_reference_in_waves_of_64() {
    check(64, SOME);
}

#[test]
fn kernels_for_many_rows_equal_the_reference_in_waves_of_32() {
    check(32, MANY);
}

#[test]
fn kernels_for_many_rows_equal_the_reference_in_waves_of_64() {
    check(64, MANY);
}

/// Whatever the threads of a block do in shared memory, barriers order it, but for writes that leave a value as it is. That this is noticed where
/// it is not so, a barrier left out shows.
#[test]
fn barriers_order_all_accesses_to_shared_memory() {
    for (i, unit) in [FEW, SOME, MANY].iter().enumerate() {
        let flags = [&[RACES], *unit].concat();
        let Some(harness) = Harness::compile(&format!("races-{i}"), 32, &flags) else {
            return;
        };
        harness.write(&CASES[..*SAMPLING]);
        for seed in 1..4 {
            harness
                .run(seed, &[])
                .unwrap_or_else(|e| panic!("{unit:?}: {e}"));
        }
        let barriers = barriers();
        let of_sums = barriers.iter().find(|b| b[0] == "block.h").unwrap();
        let error = harness.run(1, of_sums).unwrap_err();
        assert!(error.contains("race: "), "{error}");
    }
}

/// Every barrier of the kernels, as file and line, less those whose line says why nothing wrong would come of their absence.
fn barriers() -> Vec<[String; 2]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut barriers = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    files.sort();
    for file in files {
        let file = file.to_str().unwrap();
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        for (i, line) in text.lines().enumerate() {
            if ["barrier();", "wave_barrier();"].contains(&line.trim()) {
                barriers.push([file.to_string(), (i + 1).to_string()]);
            }
        }
    }
    barriers
}

/// The harness can fail: whichever barrier is left out, some order of waves gives a wrong result or no end.
#[test]
fn a_missing_barrier_is_noticed() {
    let few_rows = Harness::compile("without", 32, FEW);
    let many_rows = Harness::compile("without-many-rows", 32, MANY);
    // With the usual margin: with the other, groups tell nothing.
    let usual = Harness::compile("without-usual-margin", 32, &MANY[..1]);
    let (Some(few_rows), Some(many_rows), Some(usual)) = (few_rows, many_rows, usual) else {
        return;
    };
    let want = |cases: &[Case]| -> Vec<u8> { cases.iter().flat_map(|c| c.want.clone()).collect() };
    let draws = waiting_draws();
    many_rows.write(&draws);
    usual.write(&draws);
    let want_of_draws = want(&draws);
    let cases: Vec<_> = draws.into_iter().chain(waiting_ops()).collect();
    few_rows.write(&cases);
    let units = [
        (few_rows, want(&cases)),
        (many_rows, want_of_draws.clone()),
        (usual, want_of_draws),
    ];
    for (harness, want) in &units {
        let got = harness.run(1, &[]);
        assert!(got.as_ref() == Ok(want), "with all of them");
    }
    let barriers = barriers();
    // Some are passed by those for many rows alone.
    let wrong = |barrier: &&[String; 2]| {
        units.iter().any(|(harness, want)| {
            (1..10).any(|seed| harness.run(seed, &barrier[..]).as_ref() != Ok(want))
        })
    };
    let unnoticed: Vec<_> = barriers.iter().filter(|b| !wrong(b)).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?} of {barriers:?}");
}
