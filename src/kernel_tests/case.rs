//! A launch for the harness: what it reads, and what the Rust reference says comes of it.

use crate::device_params::DeviceParams;
use crate::params::{RowParams, SamplingParams};
use crate::reference;
use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};

/// One launch: what the harness reads, and what it must answer.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) input: Vec<u8>,
    pub(super) want: Vec<u8>,
    /// Bytes of one result.
    pub(super) width: usize,
    /// What decides a row's result, for the message.
    pub(super) rows: Vec<String>,
}

pub(super) trait Element: WithDType {
    /// The harness's number for the type.
    const CODE: u32;
    fn bytes(xs: &[Self]) -> Vec<u8>;
}

macro_rules! element {
    ($t:ty, $code:expr) => {
        impl Element for $t {
            const CODE: u32 = $code;
            fn bytes(xs: &[Self]) -> Vec<u8> {
                xs.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
        }
    };
}

element!(f32, 0);
element!(f16, 1);
element!(bf16, 2);
element!(u32, 3);

/// `RowParams` as `kernels/definition.h` declares it.
fn device_params(params: &RowParams, vocab: usize, few: bool) -> Vec<u8> {
    let words = DeviceParams::new(params, vocab, few).words();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Where the rows are in their buffer. What surrounds them is NaN, lest anyone read it unnoticed.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) gap: usize,
}

fn buffer<T: Element>(rows: &[Vec<T>], place: Place) -> Vec<T> {
    let mut data = vec![T::from_f64(f64::NAN); place.offset];
    for (i, row) in rows.iter().enumerate() {
        let gap = if i == 0 { 0 } else { place.gap };
        data.extend(vec![T::from_f64(f64::NAN); gap]);
        data.extend(row);
    }
    data
}

/// A case's input up to the parameters.
fn header<T: Element>(kind: u32, rows: &[Vec<T>], params: usize, place: Place) -> Vec<u8> {
    let vocab = rows[0].len();
    let mut bytes = u32::bytes(&[
        kind,
        T::CODE,
        rows.len() as u32,
        vocab as u32,
        params as u32,
    ]);
    let elements = place.offset + rows.len() * vocab + (rows.len() - 1) * place.gap;
    for x in [vocab + place.gap, place.offset, elements] {
        bytes.extend((x as u64).to_le_bytes());
    }
    bytes
}

pub(super) fn narrow<T: Element>(row: &[f32]) -> Vec<T> {
    row.iter().map(|&z| T::from_f64(f64::from(z))).collect()
}

/// That of a case's row.
pub(super) fn position_of(i: usize) -> u64 {
    [0, 1, u64::MAX, 1 << 40][i % 4]
}

/// Draws a token from each row with its parameters, one launch for all of them.
pub(super) fn sample<T: Element>(
    name: &str,
    rows: &[(Vec<f32>, SamplingParams)],
    place: Place,
) -> Case {
    let logits: Vec<Vec<T>> = rows.iter().map(|(row, _)| narrow(row)).collect();
    let mut input = header(0, &logits, rows.len(), place);
    let (mut ids, mut next) = (Vec::new(), Vec::new());
    for (i, (_, params)) in rows.iter().enumerate() {
        let params = params.resolve().unwrap();
        let wide: Vec<f32> = logits[i].iter().map(|z| z.to_f64() as f32).collect();
        // As one of few rows, or of more.
        input.extend(device_params(&params, wide.len(), i % 3 > 0));
        let id = reference::sample_row(&wide, &params, position_of(i));
        ids.push(id.unwrap_or(u32::MAX));
        next.extend(position_of(i).wrapping_add(1).to_le_bytes());
    }
    input.extend((0..rows.len()).flat_map(|i| position_of(i).to_le_bytes()));
    input.extend(T::bytes(&buffer(&logits, place)));
    Case {
        name: format!("sample {name} {:?}", T::DTYPE),
        input,
        want: [u32::bytes(&ids), next].concat(),
        width: 4,
        rows: rows
            .iter()
            .map(|(_, params)| format!("{params:?}"))
            .collect(),
    }
}

/// `kind` 1 is the softmax and 2 the prefix sum; `op` is the crate's.
pub(super) fn elementwise<T: Element>(
    kind: u32,
    rows: &[Vec<T>],
    offset: usize,
    op: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Case {
    let place = Place { offset, gap: 0 };
    let xs = Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap();
    let want = op(&xs).unwrap().flatten_all().unwrap().to_vec1::<T>();
    let mut input = header(kind, rows, usize::from(kind == 1), place);
    if kind == 1 {
        let plain = SamplingParams::new().resolve().unwrap();
        input.extend(device_params(&plain, rows[0].len(), false));
    }
    input.extend(T::bytes(&buffer(rows, place)));
    Case {
        name: format!("kind {kind}, {:?} {:?}", xs.dims(), T::DTYPE),
        input,
        want: T::bytes(&want.unwrap()),
        width: T::DTYPE.size_in_bytes(),
        rows: Vec::new(),
    }
}
