//! The batched sampler: parameters and positions of the rows, and the op that draws.

use crate::error::{RowError, UnsampleableRow};
#[cfg(feature = "hip")]
use crate::hip::HipDevice;
use crate::ops::{Sample, Scratch, row_of};
use crate::params::{RowParams, SamplingParams};
use crate::{INVALID_TOKEN, ParamError};
use candle_core::{DType, Error, Result, Tensor};

/// Draws one token for each row of a batch.
///
/// A row's token depends on its logits, its parameters (the seed among them) and its position, and on
/// nothing else: not on the other rows, its place among them, the number of threads or the machine.
/// Sampling the same logits at the same position again gives the same token.
///
/// Positions start at 0 and advance by one with each call, whether or not the row could be sampled.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_sampler::{Sampler, SamplingParams};
///
/// let logits = Tensor::randn(0f32, 3., (2, 1000), &Device::Cpu)?;
/// let params = SamplingParams::new().temperature(0.8).top_p(0.9);
/// let mut sampler = Sampler::new(&[params.clone().seed(1), params.clone().seed(2)])?;
///
/// let ids = sampler.sample(&logits)?; // u32, [2], ready to be the next input
/// assert_eq!(ids.dims(), [2]);
/// assert_eq!(sampler.position(0), 1);
///
/// // The second sequence has ended: another takes its row.
/// sampler.replace_row(1, &params.seed(3))?;
/// assert_eq!(sampler.position(1), 0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Sampler {
    params: Vec<RowParams>,
    positions: Vec<u64>,
    scratch: Scratch,
}

impl Sampler {
    /// A sampler for batches of `rows.len()`, each row at position 0.
    ///
    /// Fails if a parameter is out of range ([`ParamError`]); the error names the row.
    pub fn new(rows: &[SamplingParams]) -> Result<Self> {
        let params = rows.iter().enumerate().map(|(i, p)| resolve(i, p));
        Ok(Self {
            params: params.collect::<Result<_>>()?,
            positions: vec![0; rows.len()],
            scratch: Scratch::default(),
        })
    }

    /// Draws the rows of CPU tensors on this GPU from now on (feature `hip`): [`Sampler::sample`] uploads them once, from
    /// pinned memory, waits once, and gives the same ids as on the CPU, in a CPU tensor. For logits that are on the GPU
    /// already, there is [`Sampler::sample_device`].
    ///
    /// The first draw on a GPU from logits of a dtype compiles the kernels for both, or finds them on disk, and fails where
    /// hipRTC does not know the GPU.
    ///
    /// Fails where there is no hipRTC and where HIP fails.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use candle_sampler::{Sampler, SamplingParams, hip::HipDevice};
    ///
    /// let mut sampler = Sampler::new(&[SamplingParams::new().top_k(40).seed(1)])?;
    /// match HipDevice::new(0) {
    ///     Ok(device) => sampler = sampler.on_hip(&device)?,
    ///     Err(error) => println!("on the CPU then: {error}"),
    /// }
    /// let logits = Tensor::randn(0f32, 3., 1000, &Device::Cpu)?;
    /// assert_eq!(sampler.sample(&logits)?.dims(), [1]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    #[cfg(feature = "hip")]
    pub fn on_hip(mut self, device: &HipDevice) -> Result<Self> {
        self.scratch.hip = Some(crate::gpu::hip::Sampling::new(device)?);
        Ok(self)
    }

    /// The number of rows.
    pub fn batch_size(&self) -> usize {
        self.params.len()
    }

    /// Gives a row to another sequence: new parameters, position 0. The other rows go on undisturbed.
    ///
    /// Fails if a parameter is out of range; the row is then unchanged.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn replace_row(&mut self, row: usize, params: &SamplingParams) -> Result<()> {
        self.params[row] = resolve(row, params)?;
        self.positions[row] = 0;
        Ok(())
    }

    /// The position at which a row's next token will be drawn.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn position(&self, row: usize) -> u64 {
        self.positions[row]
    }

    /// Sets the position at which a row's next token will be drawn: to resume a sequence, to repeat a
    /// draw, or to count prompt tokens too.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn set_position(&mut self, row: usize, position: u64) {
        self.positions[row] = position;
    }

    /// Draws one token a row. `logits` is `[batch, vocab]`, or `[vocab]` for a batch of one, of f32, f16
    /// or bf16, with any strides; the vocabulary has 1 to 2²⁴ tokens. The result is u32, `[batch]`, on
    /// the same device.
    ///
    /// A row from which nothing can be drawn (NaN, or all −inf) yields [`INVALID_TOKEN`] and does not
    /// disturb the others.
    ///
    /// On a CUDA device (feature `cuda`) nothing waits for the device. After a first call with logits of the same shape and dtype,
    /// which compiles and uploads, the call can be captured in a CUDA graph, on a device with a stream of its own
    /// (`Device::new_cuda_with_stream`) and without event tracking; replays draw the tokens of successive calls,
    /// because positions advance in device memory. [`Sampler::position`] does not see replays. The graph holds what the
    /// sampler had on the device then: after a call with another vocabulary, or with a row replaced, capture it anew.
    ///
    /// Fails if the shape or the dtype is another, if the batch is not [`Sampler::batch_size`], and where the
    /// device fails: no memory, no NVRTC, kernels that do not compile. Positions stay then, and the sampler can be used again, unless the device is
    /// lost: then every call fails.
    pub fn sample(&mut self, logits: &Tensor) -> Result<Tensor> {
        let logits = adjacent(logits)?;
        let op = Sample::new(&self.params, &self.positions, &mut self.scratch);
        let ids = logits.apply_op1_no_bwd(&op)?;
        self.advance();
        Ok(ids)
    }

    /// Draws one token for each row of logits in a GPU's memory, for engines that have them there, without a Candle tensor
    /// (feature `hip`). The ids, u32, go to `ids`, in the same memory: one a row, [`INVALID_TOKEN`] where a row cannot be
    /// sampled. Positions advance as in [`Sampler::sample`], and the ids are the same.
    ///
    /// Everything happens on `stream`, a `hipStream_t` (null is the null stream), after what was submitted there before, and
    /// nothing waits, but for rows whose parameters or positions have changed: HIP may wait for the stream to upload them.
    /// Calls may use different streams: each call's work waits, on the GPU, for that of the call before. Graph capture is
    /// not supported.
    ///
    /// Fails if the sampler is on no GPU ([`Sampler::on_hip`]), if the logits have another dtype or number of rows than
    /// is expected or a vocabulary out of range, and where HIP fails, now or at work submitted earlier. Positions stay
    /// then; what is in `ids` is not defined.
    ///
    /// # Safety
    ///
    /// - `stream` is alive, and of the GPU on which the sampler is.
    /// - `logits.address` is aligned to its dtype and begins `(rows − 1) · stride + vocab` logits that the GPU can read.
    /// - `ids` is aligned to 4 bytes and begins `rows` integers that the GPU can write, and that are no part of the logits.
    /// - Until the stream has come by, both stay allocated, and nothing else writes to them.
    ///
    /// ```
    /// use candle_core::{DType, Result};
    /// use candle_sampler::{Sampler, hip::DeviceLogits};
    /// use std::ffi::c_void;
    ///
    /// /// What an engine does with its `[batch, 151936]` f16 logits.
    /// ///
    /// /// # Safety
    /// ///
    /// /// Both buffers are in the GPU's memory, large enough, and stay until the stream has come by.
    /// unsafe fn step(sampler: &mut Sampler, address: *const c_void, ids: *mut u32, stream: *mut c_void) -> Result<()> {
    ///     let logits = DeviceLogits {
    ///         address,
    ///         dtype: DType::F16,
    ///         rows: sampler.batch_size(),
    ///         vocab: 151_936,
    ///         stride: 151_936,
    ///     };
    ///     // SAFETY: as the caller says.
    ///     unsafe { sampler.sample_device(logits, ids, stream) }
    /// }
    /// ```
    #[cfg(feature = "hip")]
    pub unsafe fn sample_device(
        &mut self,
        logits: crate::hip::DeviceLogits,
        ids: *mut u32,
        stream: *mut std::ffi::c_void,
    ) -> Result<()> {
        let op = Sample::new(&self.params, &self.positions, &mut self.scratch);
        // SAFETY: the caller vouches for the addresses and the stream.
        unsafe { op.hip_rows(&logits, ids, stream) }?;
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        for position in &mut self.positions {
            *position = position.wrapping_add(1);
        }
    }

    fn sample_to_host(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            let logits = adjacent(logits)?;
            let (storage, layout) = logits.storage_and_layout();
            if let candle_core::Storage::Cuda(storage) = &*storage {
                let op = Sample::new(&self.params, &self.positions, &mut self.scratch);
                let ids = op.cuda_to_host(storage, layout)?;
                self.advance();
                return Ok(ids);
            }
        }
        self.sample(logits)?.to_vec1()
    }

    /// [`Sampler::sample`] with the ids on the host.
    ///
    /// Fails if a row cannot be sampled; the error ([`UnsampleableRow`]) names the first such row and the
    /// reason. The positions have advanced all the same.
    pub fn sample_to_vec(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        let ids = self.sample_to_host(logits)?;
        match ids.iter().position(|&id| id == INVALID_TOKEN) {
            None => Ok(ids),
            Some(row) => {
                let bad = row_of(logits, row)?
                    .to_dtype(DType::F32)?
                    .to_vec1::<f32>()?;
                let reason = match bad.iter().any(|z| z.is_nan()) {
                    true => RowError::Nan,
                    false => RowError::AllMasked,
                };
                Err(Error::wrap(UnsampleableRow { row, reason }))
            }
        }
    }
}

/// The logits with each row's next to each other.
fn adjacent(logits: &Tensor) -> Result<Tensor> {
    match logits.stride().last() {
        None | Some(1) => Ok(logits.clone()),
        _ => logits.contiguous(),
    }
}

fn resolve(row: usize, params: &SamplingParams) -> Result<RowParams> {
    let named = |e: ParamError| Error::wrap(e).context(format!("row {row}"));
    params.resolve().map_err(named)
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler")
            .field("params", &self.params)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}
