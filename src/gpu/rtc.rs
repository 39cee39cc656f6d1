//! Run-time compilers. NVRTC and hipRTC have the same functions under different prefixes, and are loaded when
//! first needed: a program that never samples on a GPU does not need them.

use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// Why there are no kernels.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompileError {
    /// The compiler's library is not on this machine.
    #[error("cannot load {name}; install it, or add its folder to LD_LIBRARY_PATH: {tried}")]
    Missing { name: &'static str, tried: String },
    /// A function failed.
    #[error("{function} failed: {message}")]
    Failed { function: String, message: String },
    /// The kernels do not compile.
    #[error(
        "the kernels do not compile for {target} (a newer {name} may know it); {name} says:\n{log}"
    )]
    Rejected {
        name: &'static str,
        target: String,
        log: String,
    },
}

/// One compiler's names.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) name: &'static str,
    pub(super) libraries: &'static [&'static str],
    pub(super) prefix: &'static str,
    /// How the functions that hand out machine code end.
    pub(super) code: &'static str,
}

#[cfg(feature = "cuda")]
pub(super) const NVRTC: Dialect = Dialect {
    name: "NVRTC",
    libraries: &[
        "libnvrtc.so.13",
        "libnvrtc.so.12",
        "libnvrtc.so",
        "nvrtc64_130_0.dll",
        "nvrtc64_120_0.dll",
    ],
    prefix: "nvrtc",
    code: "CUBIN",
};

#[cfg(feature = "hip")]
pub(super) const HIPRTC: Dialect = Dialect {
    name: "hipRTC",
    libraries: &["libhiprtc.so"],
    prefix: "hiprtc",
    code: "Code",
};

/// A loaded compiler.
pub(super) struct Compiler {
    dialect: &'static Dialect,
    library: Library,
}

type Program = *mut c_void;

impl Compiler {
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn load(dialect: &'static Dialect) -> Result<Self, CompileError> {
        Self::load_with(dialect, &[])
    }

    /// The same, from one of `first` where one of them has it.
    pub(super) fn load_with(
        dialect: &'static Dialect,
        first: &[String],
    ) -> Result<Self, CompileError> {
        let create = format!("{}CreateProgram", dialect.prefix);
        let mut tried = Vec::new();
        let first = first.iter().map(String::as_str);
        for name in first.chain(dialect.libraries.iter().copied()) {
            // SAFETY: these libraries' initialisers have no preconditions, and the function is not called.
            let loaded = unsafe {
                Library::new(name).and_then(|library| {
                    library.get::<*const c_void>(create.as_bytes())?;
                    Ok(library)
                })
            };
            match loaded {
                Ok(library) => return Ok(Self { dialect, library }),
                // The loader's own words, which name the library.
                Err(cause) => tried.push(match std::error::Error::source(&cause) {
                    Some(cause) => cause.to_string(),
                    None => format!("{name}: {cause}"),
                }),
            }
        }
        Err(CompileError::Missing {
            name: dialect.name,
            tried: tried.join("; "),
        })
    }

    /// Calls `{prefix}{function}` and checks what it returns.
    ///
    /// # Safety
    ///
    /// `F` must be the function's type, and `call` must pass it what it may be passed.
    unsafe fn call<F: Copy>(
        &self,
        function: &str,
        call: impl FnOnce(F) -> c_int,
    ) -> Result<(), CompileError> {
        let function = format!("{}{function}", self.dialect.prefix);
        let failed = |message| CompileError::Failed {
            function: function.clone(),
            message,
        };
        // SAFETY: the caller vouches for the type.
        let pointer = unsafe { self.library.get::<F>(function.as_bytes()) };
        match call(*pointer.map_err(|e| failed(e.to_string()))?) {
            0 => Ok(()),
            status => Err(failed(self.describe(status))),
        }
    }

    fn describe(&self, status: c_int) -> String {
        type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
        let name = format!("{}GetErrorString", self.dialect.prefix);
        // SAFETY: the function has this type, takes any status, and returns a static string, or null.
        let text = unsafe {
            let function = self.library.get::<GetErrorString>(name.as_bytes());
            let text = function.map_or(std::ptr::null(), |f| f(status));
            (!text.is_null()).then(|| CStr::from_ptr(text))
        };
        match text {
            Some(text) => text.to_string_lossy().into_owned(),
            None => format!("status {status}"),
        }
    }

    pub(super) fn version(&self) -> Result<(i32, i32), CompileError> {
        let (mut major, mut minor) = (0, 0);
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        // SAFETY: two integers to write to.
        unsafe { self.call("Version", |f: Version| f(&mut major, &mut minor))? };
        Ok((major, minor))
    }

    /// Machine code for `target`, which `options` name.
    pub(super) fn compile(
        &self,
        source: &str,
        options: &[String],
        target: &str,
    ) -> Result<Vec<u8>, CompileError> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let text = |s: &str| CString::new(s).expect("no NUL in sources and options");
        let (source, name) = (text(source), text("candle_sampler.hip"));
        let options: Vec<CString> = options.iter().map(|o| text(o)).collect();
        let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: strings that outlive the calls, and a program that is destroyed once, last.
        unsafe {
            self.call("CreateProgram", |f: Create| {
                f(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none)
            })?;
            let compiled = self.call("CompileProgram", |f: Compile| {
                f(program, pointers.len() as c_int, pointers.as_ptr())
            });
            let code = match compiled {
                Ok(()) => self.read(program, self.dialect.code),
                Err(error) => Err(match self.read(program, "ProgramLog") {
                    Ok(log) if log.iter().any(u8::is_ascii_graphic) => CompileError::Rejected {
                        name: self.dialect.name,
                        target: target.to_owned(),
                        log: String::from_utf8_lossy(&log)
                            .trim_end_matches(['\0', '\n'])
                            .to_owned(),
                    },
                    // It has no words for it.
                    _ => error,
                }),
            };
            self.call("DestroyProgram", |f: Destroy| f(&mut program))?;
            code
        }
    }

    /// What `{prefix}Get{what}` writes, as long as `{prefix}Get{what}Size` says.
    ///
    /// # Safety
    ///
    /// `program` must be alive.
    unsafe fn read(&self, program: Program, what: &str) -> Result<Vec<u8>, CompileError> {
        type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut u8) -> c_int;
        let mut size = 0;
        // SAFETY: the second call writes as many bytes as the first one said.
        unsafe {
            self.call(&format!("Get{what}Size"), |f: GetSize| {
                f(program, &mut size)
            })?;
            let mut bytes = vec![0; size];
            self.call(&format!("Get{what}"), |f: Get| {
                f(program, bytes.as_mut_ptr())
            })?;
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named() {
        const NOWHERE: Dialect = Dialect {
            name: "NVRTC",
            libraries: &["libno-such-compiler.so.1"],
            prefix: "x",
            code: "X",
        };
        let error = Compiler::load(&NOWHERE)
            .err()
            .expect("there is none")
            .to_string();
        assert!(
            error.starts_with("cannot load NVRTC;") && error.contains("libno-such-compiler.so.1: "),
            "{error}"
        );
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn sources_compile_and_mistakes_show_the_log() {
        let compiler = match Compiler::load(&NVRTC) {
            Ok(compiler) => compiler,
            Err(error) => return println!("skipped: {error}"),
        };
        let options = ["--gpu-architecture=sm_90".to_owned()];
        let good = compiler.compile("extern \"C\" __global__ void f() {}", &options, "sm_90");
        assert!(good.expect("machine code").starts_with(b"\x7fELF"));
        let bad = compiler
            .compile("int f() { return nonsense; }", &options, "sm_90")
            .unwrap_err();
        let bad = bad.to_string();
        assert!(
            bad.contains("do not compile for sm_90") && bad.contains("nonsense"),
            "{bad}"
        );
        let foreign = ["--gpu-architecture=sm_1".to_owned()];
        assert!(compiler.compile("", &foreign, "sm_1").is_err());
    }
}
