//! Softmax over the last dimension.

use super::{contiguous_rows, map_rows};
use crate::definition::weight::{SLICE, Scale, reciprocal};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

/// The softmax as a [`CustomOp1`]; see [`softmax`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Softmax;

/// Probabilities this many binary orders below the largest are 0 (f32 ends there).
const DEPTH: f32 = 125.0;

/// Softmax over the last dimension: f32, f16 or bf16, any shape but a scalar's; the result has the input's
/// shape and dtype.
///
/// Weights and their sum are those of the sampler (`docs/definition.md`, temperature 1): the sum is an
/// integer, so the result does not depend on how the row is divided among threads, and each f32
/// probability is within 2⁻¹⁸ of the exact one, relatively; below 2⁻¹²⁵ of the largest it is 0. −inf
/// gives 0; NaN, +inf, or −inf throughout make the whole row NaN.
///
/// Fails for other dtypes, for scalars, and where an input that is not contiguous cannot be made so.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[0f32, f32::NEG_INFINITY, 0.0], &Device::Cpu)?;
/// assert_eq!(candle_sampler::ops::softmax(&x)?.to_vec1::<f32>()?, [0.5, 0.0, 0.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1_no_bwd(&Softmax)
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn rows<T: Copy + Default + Send + Sync>(
            data: &[T],
            last: usize,
            widen: impl Fn(T) -> f32 + Sync,
            narrow: impl Fn(f32) -> T + Sync,
        ) -> Vec<T> {
            map_rows(data, last, |from, to| row(from, to, &widen, &narrow))
        }
        let (elements, last) = contiguous_rows(self.name(), layout)?;
        let out = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(rows(&data[elements], last, |x| x, |x| x)),
            CpuStorage::F16(data) => {
                CpuStorage::F16(rows(&data[elements], last, f16::to_f32, f16::from_f32))
            }
            CpuStorage::BF16(data) => {
                CpuStorage::BF16(rows(&data[elements], last, bf16::to_f32, bf16::from_f32))
            }
            other => bail!(
                "softmax: dtype {:?} is not one of F32, F16, BF16",
                other.dtype()
            ),
        };
        Ok((out, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((
            crate::gpu::cuda::softmax(storage, layout)?,
            layout.shape().clone(),
        ))
    }
}

fn row<T: Copy>(from: &[T], to: &mut [T], widen: impl Fn(T) -> f32, narrow: impl Fn(f32) -> T) {
    let largest = |xs: &[T]| {
        xs.iter()
            .map(|&x| widen(x))
            .fold(f32::NEG_INFINITY, f32::max)
    };
    let max = largest(from);
    if !max.is_finite() || from.iter().any(|&x| widen(x).is_nan()) {
        to.fill(narrow(f32::NAN));
        return;
    }
    let scale = Scale {
        base: 0.0,
        scale: std::f32::consts::LOG2_E,
        inverse: std::f32::consts::LN_2,
    };
    let scale = scale.measured_from(max);
    let unit = scale.slice(max).expect("the largest logit has mass");
    let slices = || from.chunks(SLICE).map(|xs| (scale.slice(largest(xs)), xs));
    let mass = slices()
        .filter_map(|(slice, xs)| {
            let slice = slice?;
            let sum = xs.iter().map(|&x| u64::from(slice.weight(widen(x)))).sum();
            Some(slice.to_row_units(sum, unit))
        })
        .sum();
    let reciprocal = reciprocal(mass);
    let deep = scale
        .slice_down_to(max, DEPTH)
        .expect("the largest logit has mass");
    for (to, &x) in to.iter_mut().zip(from) {
        let x = widen(x);
        let p = if deep.clamps(x) {
            0.0
        } else {
            deep.unrounded(x) * reciprocal
        };
        *to = narrow(p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    fn exact(xs: &[f32]) -> Vec<f64> {
        let max = xs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f64> = xs
            .iter()
            .map(|&x| (f64::from(x) - f64::from(max)).exp())
            .collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    }

    fn ours(xs: &[f32]) -> Vec<f32> {
        let xs = Tensor::new(xs, &Device::Cpu).unwrap();
        softmax(&xs).unwrap().to_vec1().unwrap()
    }

    fn close(xs: &[f32]) {
        let (got, want) = (ours(xs), exact(xs));
        let top = want.iter().copied().fold(0., f64::max);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let error = (f64::from(*g) - w).abs();
            assert!(
                error <= w * 2f64.powi(-18) + top * 2f64.powi(-124),
                "{i}: {g} is not {w}"
            );
        }
    }

    proptest! {
        #[test]
        fn equals_f64(xs in prop::collection::vec(-60f32..60., 1..2000), shift in -1e4f32..1e4) {
            close(&xs);
            close(&xs.iter().map(|x| x + shift).collect::<Vec<_>>());
        }
    }

    #[test]
    fn offsets_and_masks() {
        close(&[3e6, 3e6 - 1.0, -1e30, f32::NEG_INFINITY]);
        close(&[-1e9; 700]);
        close(&[f32::MAX, 0.0, f32::MIN]);
        assert_eq!(ours(&[-3e38; 4]), [0.25; 4]);
        for bad in [
            [f32::NAN, 1.0],
            [f32::INFINITY, 1.0],
            [f32::NEG_INFINITY, f32::NEG_INFINITY],
        ] {
            assert!(ours(&bad).iter().all(|p| p.is_nan()), "{bad:?}");
        }
    }

    #[test]
    fn shapes_views_and_dtypes() -> Result<()> {
        let x = Tensor::randn(0f32, 4., (3, 5, 600), &Device::Cpu)?;
        let whole = softmax(&x)?;
        assert_eq!(whole.dims(), [3, 5, 600]);
        let view = x.narrow(1, 2, 2)?;
        assert_eq!(
            softmax(&view)?.to_vec3::<f32>()?,
            whole.narrow(1, 2, 2)?.to_vec3::<f32>()?
        );
        let transposed = x.transpose(1, 2)?;
        assert_eq!(softmax(&transposed)?.dims(), [3, 600, 5]);
        for dtype in [DType::F16, DType::BF16] {
            let narrow = x.to_dtype(dtype)?;
            let want = softmax(&narrow.to_dtype(DType::F32)?)?.to_dtype(dtype)?;
            assert_eq!(
                softmax(&narrow)?.to_dtype(DType::F32)?.to_vec3::<f32>()?,
                want.to_dtype(DType::F32)?.to_vec3::<f32>()?
            );
        }
        assert_eq!(
            softmax(&Tensor::zeros((2, 0), DType::F32, &Device::Cpu)?)?.dims(),
            [2, 0]
        );
        let wrong = softmax(&Tensor::zeros(3, DType::F64, &Device::Cpu)?).unwrap_err();
        assert!(
            wrong
                .to_string()
                .contains("F64 is not one of F32, F16, BF16"),
            "{wrong}"
        );
        assert!(softmax(&Tensor::new(1f32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
