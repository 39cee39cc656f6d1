//! The `Sampler`'s contract: shapes, dtypes, rows that do not see each other, positions, errors.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use candle_sampler::{
    INVALID_TOKEN, RowError, Sampler, SamplingParams, TopKTopP, UnsampleableRow, ops, reference,
};
use common::{kinds, normal, real, rng, row};

fn stack(rows: &[Vec<f32>]) -> Tensor {
    let rows: Vec<Tensor> = rows.iter().map(|r| row(r)).collect();
    Tensor::stack(&rows, 0).expect("rows of one length")
}

/// Rows of one vocabulary, and parameters that differ in every field.
fn batch(vocab: usize) -> (Vec<Vec<f32>>, Vec<SamplingParams>) {
    let rows = kinds(vocab, 77).into_iter().map(|(_, row)| row).collect();
    let p = || SamplingParams::new().temperature(0.8);
    let params = vec![
        p().seed(1),
        p().top_k(5).seed(1),
        p().top_p(0.7).seed(2),
        p().temperature(0.0),
        p().top_k(30).top_p(0.9).min_p(0.01).seed(1),
        p().top_k(30).top_p(0.9).order(TopKTopP::Joint).seed(3),
    ];
    (rows, params)
}

#[test]
fn equals_the_reference_for_every_dtype_and_layout() -> Result<()> {
    let (rows, params) = batch(1003);
    let plain = stack(&rows);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let logits = plain.to_dtype(dtype)?;
        let wide = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let want: Vec<u32> = wide
            .iter()
            .zip(&params)
            .map(|(row, params)| reference::sample(row, params, 0))
            .collect::<Result<_>>()?;
        let sample = |logits: &Tensor| Sampler::new(&params)?.sample_to_vec(logits);
        assert_eq!(sample(&logits)?, want, "{dtype:?}");
        assert_eq!(
            sample(&logits.t()?.contiguous()?.t()?)?,
            want,
            "column-major"
        );
        let around = logits.pad_with_zeros(1, 3, 10)?.pad_with_zeros(0, 1, 2)?;
        let view = around.narrow(1, 3, 1003)?.narrow(0, 1, rows.len())?;
        assert_eq!(view.stride()[0], 1016);
        assert_eq!(sample(&view)?, want, "a padded, misaligned view");
        for (i, params) in params.iter().enumerate() {
            let mut one = Sampler::new(std::slice::from_ref(params))?;
            assert_eq!(one.sample_to_vec(&logits.get(i)?)?, [want[i]], "[vocab]");
        }
    }
    Ok(())
}

#[test]
fn tokens_do_not_depend_on_batch_place_or_threads() -> Result<()> {
    let (rows, params) = batch(20_000);
    let n = rows.len();
    let want = Sampler::new(&params)?.sample_to_vec(&stack(&rows))?;
    // Every row in every place of a batch of 13.
    for shift in 0..n {
        let place = |i: usize| (i + shift) % n;
        let logits = stack(&(0..13).map(|i| rows[place(i)].clone()).collect::<Vec<_>>());
        let moved: Vec<_> = (0..13).map(|i| params[place(i)].clone()).collect();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let got = pool.install(|| Sampler::new(&moved)?.sample_to_vec(&logits))?;
            let expected: Vec<u32> = (0..13).map(|i| want[place(i)]).collect();
            assert_eq!(got, expected, "shift {shift}, {threads} threads");
        }
    }
    Ok(())
}

#[test]
fn positions_advance_and_can_be_set() -> Result<()> {
    let logits = row(&normal(&mut rng(1), 5000, 1.0));
    let params = SamplingParams::new().seed(9);
    let mut sampler = Sampler::new(std::slice::from_ref(&params))?;
    let first: Vec<u32> = (0..20)
        .map(|_| Ok(sampler.sample_to_vec(&logits)?[0]))
        .collect::<Result<_>>()?;
    assert_eq!(sampler.position(0), 20);
    assert!(
        first.iter().any(|id| *id != first[0]),
        "the numbers must change"
    );
    sampler.set_position(0, 7);
    assert_eq!(sampler.sample_to_vec(&logits)?[0], first[7]);
    assert_eq!(sampler.position(0), 8);
    let alone = ops::sample(&logits, &[params], &[13])?;
    assert_eq!(alone.to_vec1::<u32>()?, [first[13]]);
    Ok(())
}

#[test]
fn rows_can_be_replaced_one_at_a_time() -> Result<()> {
    let logits = normal(&mut rng(2), 3000, 1.0);
    let both = stack(&[logits.clone(), logits.clone()]);
    let (a, b, c) = (
        SamplingParams::new().seed(1),
        SamplingParams::new().seed(2),
        SamplingParams::new().seed(3),
    );
    let alone = |params: &SamplingParams, n: usize| -> Result<Vec<u32>> {
        (0..n as u64)
            .map(|position| reference::sample(&logits, params, position))
            .collect()
    };
    let mut sampler = Sampler::new(&[a.clone(), b.clone()])?;
    let mut got = [vec![], vec![]];
    for step in 0..10 {
        if step == 4 {
            sampler.replace_row(1, &c)?;
        }
        let ids = sampler.sample_to_vec(&both)?;
        (0..2).for_each(|i| got[i].push(ids[i]));
    }
    assert_eq!(got[0], alone(&a, 10)?);
    assert_eq!(got[1], [alone(&b, 4)?, alone(&c, 6)?].concat());
    let error = sampler
        .replace_row(1, &a.clone().top_p(7.0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("row 1") && error.contains("top_p = 7"),
        "{error}"
    );
    assert_eq!(
        sampler.position(1),
        6,
        "a refused replacement changes nothing"
    );
    Ok(())
}

#[test]
fn bad_rows_are_marked_and_disturb_no_other() -> Result<()> {
    let (mut rows, params) = batch(2000);
    let want = Sampler::new(&params)?.sample_to_vec(&stack(&rows))?;
    rows[1][1999] = f32::NAN;
    rows[3] = vec![f32::NAN; 2000];
    rows[4] = vec![f32::NEG_INFINITY; 2000];
    let logits = stack(&rows);
    let mut sampler = Sampler::new(&params)?;
    let got = sampler.sample(&logits)?.to_vec1::<u32>()?;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let bad = [1, 3, 4].contains(&i);
        assert_eq!(*got, if bad { INVALID_TOKEN } else { *want }, "row {i}");
    }
    let error = sampler.sample_to_vec(&logits).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("row 1 cannot be sampled: the logits contain NaN"),
        "{error}"
    );
    assert_eq!(sampler.position(0), 2);

    let masked = stack(&[vec![f32::NEG_INFINITY; 9]]);
    let error = Sampler::new(&params[..1])?
        .sample_to_vec(&masked)
        .unwrap_err();
    let cause = UnsampleableRow {
        row: 0,
        reason: RowError::AllMasked,
    };
    assert!(error.to_string().contains(&cause.to_string()), "{error}");
    Ok(())
}

#[test]
fn infinity_wins_outright() -> Result<()> {
    let logits = row(&[1.0, f32::INFINITY, 5.0, f32::INFINITY]);
    for params in [
        SamplingParams::new(),
        SamplingParams::new().top_k(3).top_p(0.9),
        SamplingParams::new().min_p(0.1),
    ] {
        assert_eq!(Sampler::new(&[params])?.sample_to_vec(&logits)?, [1]);
    }
    Ok(())
}

#[test]
fn mistakes_are_errors_that_say_what_was_expected() -> Result<()> {
    let says = |result: Result<Tensor>, parts: &[&str]| {
        let error = result.unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    };
    let two = || Sampler::new(&[SamplingParams::new(), SamplingParams::new()]).expect("valid");
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).expect("zeros");
    says(
        two().sample(&zeros(&[3, 5], DType::F32)),
        &["2 rows", "logits 3"],
    );
    says(
        two().sample(&zeros(&[5], DType::F32)),
        &["2 rows", "logits 1"],
    );
    says(
        two().sample(&zeros(&[2, 1, 5], DType::F32)),
        &["[2, 1, 5]", "[batch, vocab]"],
    );
    says(two().sample(&zeros(&[], DType::F32)), &["[batch, vocab]"]);
    says(
        two().sample(&zeros(&[2, 5], DType::F64)),
        &["F64", "F32, F16 or BF16"],
    );
    says(two().sample(&zeros(&[2, 5], DType::U32)), &["U32"]);
    says(
        two().sample(&zeros(&[2, 0], DType::F32)),
        &["0 tokens", "1 to 16777216"],
    );
    says(
        ops::sample(&zeros(&[5], DType::F32), &[SamplingParams::new()], &[]),
        &["1 rows", "0 positions"],
    );
    let error = Sampler::new(&[SamplingParams::new(), SamplingParams::new().top_k(0)]).unwrap_err();
    assert!(error.to_string().contains("row 1"), "{error}");
    let mut sampler = two();
    assert!(sampler.sample(&zeros(&[3, 5], DType::F32)).is_err());
    assert_eq!(sampler.position(0), 0, "a refused call draws nothing");
    Ok(())
}

#[test]
fn an_empty_batch_draws_nothing() -> Result<()> {
    let logits = Tensor::zeros((0, 7), DType::F32, &Device::Cpu)?;
    let mut sampler = Sampler::new(&[])?;
    assert_eq!(sampler.batch_size(), 0);
    assert_eq!(sampler.sample(&logits)?.dims(), [0]);
    assert!(sampler.sample_to_vec(&logits)?.is_empty());
    Ok(())
}

#[test]
fn the_same_logits_in_any_float_type_draw_the_same_token() -> Result<()> {
    // Values that bf16 and f16 hold exactly.
    let logits: Vec<f32> = normal(&mut rng(3), 9000, 2.0)
        .iter()
        .map(|z| (z * 8.0).round() / 8.0)
        .collect();
    let params = SamplingParams::new().top_p(0.9).seed(5);
    let tokens = |dtype| {
        Sampler::new(std::slice::from_ref(&params))?.sample_to_vec(&row(&logits).to_dtype(dtype)?)
    };
    assert_eq!(tokens(DType::F32)?, tokens(DType::F16)?);
    assert_eq!(tokens(DType::F32)?, tokens(DType::BF16)?);
    Ok(())
}

/// Frozen tokens: a change here is a change of the definition, and belongs in the CHANGELOG.
#[test]
fn known_answers_on_real_rows() -> Result<()> {
    let base = SamplingParams::new().temperature(0.8).seed(299_792_458);
    let hot = base.clone().temperature(1.5);
    let modes = [
        base.clone(),
        hot.clone(),
        base.clone().top_k(50).top_p(0.9),
        hot.clone().top_k(50).top_p(0.9).order(TopKTopP::Joint),
        hot.clone().top_p(0.9),
        hot.clone().top_k(50_000),
        hot.clone().min_p(0.02),
        hot.top_p(0.1),
    ];
    let mut got = Vec::new();
    for logits in real() {
        let both = row(&logits).broadcast_as((modes.len(), logits.len()))?;
        let mut sampler = Sampler::new(&modes)?;
        got.push(sampler.sample_to_vec(&both)?);
        let slow = modes
            .iter()
            .map(|params| reference::sample(&logits, params, 0));
        assert_eq!(got.last(), Some(&slow.collect::<Result<_>>()?));
    }
    assert_eq!(got, KNOWN);
    Ok(())
}

const KNOWN: [[u32; 8]; 4] = [
    [48746, 106773, 3837, 67338, 106773, 106773, 99877, 99487],
    [6133, 28844, 6133, 4357, 126510, 28844, 5248, 6133],
    [
        104737, 108110, 104737, 104737, 108110, 108110, 104737, 107605,
    ],
    [501, 1936, 501, 501, 1936, 1936, 501, 501],
];
