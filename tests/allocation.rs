//! In steady state the sampler allocates the tensor of ids, and nothing that grows with the vocabulary.

use candle_core::{Device, Result, Tensor};
use candle_sampler::{Sampler, SamplingParams};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_that_grows_is_allocated_in_steady_state() -> Result<()> {
    const BATCH: usize = 64;
    let logits = Tensor::randn(0f32, 3., (BATCH, 50_000), &Device::Cpu)?;
    let base = SamplingParams::new().temperature(0.8);
    for (mode, params) in [
        ("all", base.clone()),
        ("top-k", base.clone().top_k(50)),
        // Low enough that the first calls search, too, which takes room of its own.
        ("top-p", base.clone().top_p(0.5)),
        ("both", base.clone().top_k(5000).top_p(0.9)),
        ("min-p", base.min_p(0.05)),
    ] {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let rows: Vec<_> = (0..BATCH as u64)
                .map(|seed| params.clone().seed(seed))
                .collect();
            let mut sampler = Sampler::new(&rows)?;
            let mut call = || pool.install(|| sampler.sample(&logits));
            for _ in 0..20 {
                call()?;
            }
            let before = BYTES.load(Relaxed);
            const CALLS: usize = 20;
            for _ in 0..CALLS {
                call()?;
            }
            let each = (BYTES.load(Relaxed) - before) / CALLS;
            // 256 bytes of ids, the tensor around them, and the thread pool's queue.
            assert!(
                each < 2048,
                "{mode}, {threads} threads: {each} bytes a call"
            );
        }
    }
    Ok(())
}
