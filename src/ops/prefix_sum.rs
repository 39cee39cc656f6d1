//! Inclusive prefix sum over the last dimension.

use super::{contiguous_rows, map_rows};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// The inclusive prefix sum as a [`CustomOp1`]; see [`prefix_sum`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefixSum;

/// Elements per block of the fixed order in which floats are added.
const BLOCK: usize = 512;

/// Inclusive prefix sum over the last dimension: `y[i] = x[0] + … + x[i]`, for f32 or u32, any shape but
/// a scalar's; the result has the input's shape and dtype.
///
/// u32 sums wrap. f32 sums follow a fixed order, the same on every backend: blocks of 512 elements, each
/// summed by doubling steps (Hillis and Steele, "Data parallel algorithms", 1986), and the blocks' totals
/// one after the other. The error is below `(n/512 + 10)` roundings instead of `n`.
///
/// Fails for other dtypes, for scalars, and where an input that is not contiguous cannot be made so.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?;
/// let sums = candle_sampler::ops::prefix_sum(&x)?;
/// assert_eq!(sums.to_vec2::<f32>()?, [[1., 3., 6.], [4., 9., 15.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn prefix_sum(xs: &Tensor) -> Result<Tensor> {
    xs.contiguous()?.apply_op1_no_bwd(&PrefixSum)
}

impl CustomOp1 for PrefixSum {
    fn name(&self) -> &'static str {
        "prefix-sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (elements, last) = contiguous_rows(self.name(), layout)?;
        let out = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(map_rows(&data[elements], last, row_f32)),
            CpuStorage::U32(data) => CpuStorage::U32(map_rows(&data[elements], last, row_u32)),
            other => bail!(
                "prefix-sum: dtype {:?} is not one of F32, U32",
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
            crate::gpu::cuda::prefix_sum(storage, layout)?,
            layout.shape().clone(),
        ))
    }
}

fn row_f32(from: &[f32], to: &mut [f32]) {
    let mut before = 0.0;
    for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        to.copy_from_slice(from);
        let mut step = 1;
        while step < to.len() {
            // Downwards, so that each element adds its neighbour's value of the step before.
            for i in (step..to.len()).rev() {
                to[i] += to[i - step];
            }
            step *= 2;
        }
        for sum in to.iter_mut() {
            *sum += before;
        }
        before = to[to.len() - 1];
    }
}

fn row_u32(from: &[u32], to: &mut [u32]) {
    let mut sum = 0u32;
    for (&x, to) in from.iter().zip(to) {
        sum = sum.wrapping_add(x);
        *to = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    fn ours(xs: &[f32]) -> Vec<f32> {
        let xs = Tensor::new(xs, &Device::Cpu).unwrap();
        prefix_sum(&xs).unwrap().to_vec1().unwrap()
    }

    proptest! {
        #[test]
        fn equals_f64(xs in prop::collection::vec(0f32..1., 1..5000)) {
            let mut want = 0f64;
            for (i, (x, got)) in xs.iter().zip(ours(&xs)).enumerate() {
                want += f64::from(*x);
                prop_assert!((f64::from(got) / want - 1.0).abs() < 2e-6 || want == 0.0, "{i}: {got} is not {want}");
            }
        }

        #[test]
        fn is_exact_on_integers(xs in prop::collection::vec(any::<u32>(), 1..3000)) {
            let small: Vec<f32> = xs.iter().map(|x| (x % 1000) as f32).collect();
            let mut sum = 0.0;
            for (x, got) in small.iter().zip(ours(&small)) {
                sum += x;
                prop_assert_eq!(got, sum);
            }
            let t = Tensor::new(xs.as_slice(), &Device::Cpu).unwrap();
            let got = prefix_sum(&t).unwrap().to_vec1::<u32>().unwrap();
            let mut sum = 0u32;
            for (x, got) in xs.iter().zip(got) {
                sum = sum.wrapping_add(*x);
                prop_assert_eq!(got, sum);
            }
        }
    }

    #[test]
    fn shapes_views_and_dtypes() -> Result<()> {
        let x = Tensor::arange(0f32, 24., &Device::Cpu)?.reshape((2, 3, 4))?;
        let sums = prefix_sum(&x.narrow(1, 1, 2)?)?.to_vec3::<f32>()?;
        assert_eq!(sums[0], [[4., 9., 15., 22.], [8., 17., 27., 38.]]);
        assert_eq!(prefix_sum(&x.t()?)?.to_vec3::<f32>()?[0][0], [0., 4., 12.]);
        assert_eq!(
            prefix_sum(&Tensor::zeros((3, 0), DType::F32, &Device::Cpu)?)?.dims(),
            [3, 0]
        );
        let wrong = prefix_sum(&Tensor::zeros(3, DType::F64, &Device::Cpu)?).unwrap_err();
        assert!(
            wrong.to_string().contains("F64 is not one of F32, U32"),
            "{wrong}"
        );
        assert!(prefix_sum(&Tensor::new(1f32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
