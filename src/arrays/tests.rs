use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array, LargeListArray,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type};
use arrow_quant_kernels::{Bits, Dtype, GroupSize, Isa, Method, Scheme, Settings, Weights, dequantize, quantize};

use super::{QuantizedData, TensorData};
use crate::QuantError;

const SETTINGS: Settings =
    Settings { bits: Bits::Four, group_size: GroupSize::ALL[0], scheme: Scheme::Affine, method: Method::Mse };

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32)).collect()
}

fn restored(quantized: &QuantizedData) -> Vec<f32> {
    let mut out = vec![0.0; quantized.elements() as usize];
    quantized.dequantize_into(&mut out, 3).unwrap();
    out
}

#[test]
fn whatever_the_pieces_and_threads_the_kernel_decides() {
    let (rows, row) = (3000, 300);
    let weights = wave(rows * row);
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let isa = Isa::active().unwrap();
    // Chunks are of whole rows, so each is quantized as if alone.
    let alone = |rows: std::ops::Range<usize>| {
        let bytes = &bytes[rows.start * row * 4..rows.end * row * 4];
        let quantized = quantize(isa, Weights::new(Dtype::F32, bytes, row).unwrap(), SETTINGS, None).unwrap();
        dequantize(isa, &quantized.as_ref()).unwrap()
    };
    let step = (1 << 16) / row;
    let expected: Vec<f32> = (0..rows).step_by(step).flat_map(|first| alone(first..rows.min(first + step))).collect();
    let whole = Buffer::from_vec(bytes);
    let cuts = [4, 1000 * 4, (1 << 16) * 4, 500_000 * 4, 500_001 * 4];
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in cuts.into_iter().chain([whole.len()]) {
        pieces.push(whole.slice_with_length(start, end - start));
        start = end;
    }
    for (buffers, threads) in [(vec![whole.clone()], 1), (vec![whole], 5), (pieces, 3)] {
        let tensor = TensorData::new(Dtype::F32, vec![rows as i64, row as i64], buffers).unwrap();
        let quantized = tensor.quantize("w", SETTINGS, threads).unwrap();
        assert!(restored(&quantized) == expected);
        assert_eq!(quantized.errors().n, (rows * row) as u64);
        assert!(quantized.bytes() < tensor.elements());
    }
}

#[test]
fn an_invalid_weight_is_named_by_its_place_in_the_tensor() {
    let mut weights = wave(200_000);
    weights[150_001] = f32::NAN;
    let tensor = TensorData::from_arrow("w", &DataType::Float32, &[Arc::new(Float32Array::from(weights))]).unwrap();
    let error = tensor.quantize("layer.w", SETTINGS, 2).unwrap_err();
    assert!(error.to_string().starts_with("layer.w: weight 150001 is NaN"), "{error}");
    assert!(matches!(error, QuantError::Quantization { tensor: Some(tensor), .. } if tensor == "layer.w"));
}

#[test]
fn a_shape_must_have_its_bytes() {
    for (shape, bytes) in [(vec![2, 3], 23), (vec![-1], 4), (vec![i64::MAX, i64::MAX], 4)] {
        let error = TensorData::new(Dtype::F32, shape, vec![Buffer::from_vec(vec![0u8; bytes])]).unwrap_err();
        assert!(matches!(error, QuantError::ShapeMismatch { .. }), "{error}");
    }
    for shape in [vec![0, 5], vec![0]] {
        let none = TensorData::new(Dtype::F64, shape, vec![]).unwrap().quantize("none", SETTINGS, 1).unwrap();
        assert_eq!((none.elements(), none.rows("none").unwrap().num_rows()), (0, 1));
    }
}

fn lists(values: ArrayRef, length: usize) -> [ArrayRef; 2] {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    let rows = values.len() / length;
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(length, rows));
    [
        Arc::new(LargeListArray::new(Arc::clone(&item), offsets, Arc::clone(&values), None)),
        Arc::new(FixedSizeListArray::new(item, length as i32, values, None)),
    ]
}

#[test]
fn arrow_arrays_come_back_in_their_type() {
    let floats = wave(64 * 48);
    let expected = |array: &ArrayRef| -> Vec<f64> {
        arrow::compute::cast(array, &DataType::Float64).unwrap().as_primitive::<Float64Type>().values().to_vec()
    };
    let halves: Float16Array = floats.iter().map(|&w| Some(half::f16::from_f32(w))).collect();
    let doubles: Float64Array = floats.iter().map(|&w| Some(f64::from(w))).collect();
    let flat: [ArrayRef; 3] = [Arc::new(Float32Array::from(floats)), Arc::new(halves), Arc::new(doubles)];
    let coarse = Settings { bits: Bits::Eight, ..SETTINGS };
    for values in &flat {
        for array in lists(Arc::clone(values), 48).into_iter().chain([Arc::clone(values)]) {
            // In two slices, which start anywhere.
            let pieces = [array.slice(0, 13), array.slice(13, array.len() - 13)];
            let tensor = TensorData::from_arrow("w", array.data_type(), &pieces).unwrap();
            let quantized = tensor.quantize("w", coarse, 1).unwrap();
            let back = quantized.to_arrow(array.data_type(), 1).unwrap();
            assert_eq!((back.data_type(), back.len()), (array.data_type(), array.len()));
            let inner = match back.data_type() {
                DataType::LargeList(_) => Arc::clone(back.as_list::<i64>().values()),
                DataType::FixedSizeList(_, _) => Arc::clone(back.as_fixed_size_list().values()),
                _ => back,
            };
            let worst = expected(&inner).iter().zip(expected(values)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 0.06, "{worst}");
        }
    }
}

#[test]
fn arrow_arrays_are_not_copied() {
    let array: ArrayRef = Arc::new(Float32Array::from(wave(1000)));
    let sliced = array.slice(10, 900);
    let tensor = TensorData::from_arrow("w", &DataType::Float32, &[Arc::clone(&sliced)]).unwrap();
    assert_eq!(tensor.buffers[0].as_ptr(), sliced.as_primitive::<Float32Type>().values().as_ptr().cast());
}

#[test]
fn what_is_no_tensor_is_refused_by_row() {
    let nulls: ArrayRef = Arc::new(Float32Array::from(vec![Some(1.0), None, Some(2.0)]));
    let error = TensorData::from_arrow("w", &DataType::Float32, &[nulls]).unwrap_err();
    assert!(error.to_string().starts_with("w has a NULL at 1"), "{error}");
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let ragged =
        LargeListArray::new(item, OffsetBuffer::from_lengths([2, 2, 3]), Arc::new(Float32Array::from(wave(7))), None);
    let error = TensorData::from_arrow("w", &ragged.data_type().clone(), &[Arc::new(ragged)]).unwrap_err();
    assert!(error.to_string().starts_with("w: the list at 2 has 3 elements, those before it 2"), "{error}");
    let error = TensorData::from_arrow("w", &DataType::Int8, &[]).unwrap_err();
    assert!(error.to_string().starts_with("w is Int8, allowed: floats"), "{error}");
}

#[test]
fn rows_are_the_tensor_again_in_any_order() {
    let tensor =
        TensorData::from_arrow("w", &DataType::Float32, &[Arc::new(Float32Array::from(wave(200_000)))]).unwrap();
    let quantized = tensor.quantize("w", SETTINGS, 2).unwrap();
    let rows = quantized.rows("w").unwrap();
    assert_eq!(rows.num_rows(), 1, "a row that is one chunk");
    let matrix = TensorData::new(Dtype::F32, vec![1000, 200], tensor.buffers).unwrap();
    let matrix = matrix.quantize("m", SETTINGS, 2).unwrap();
    let many = matrix.rows("m").unwrap();
    let backwards: Vec<_> = (0..many.num_rows()).rev().map(|row| many.slice(row, 1)).collect();
    let all: Vec<_> = [rows].into_iter().chain(backwards.clone()).collect();
    let back = QuantizedData::from_rows(&all).unwrap();
    assert_eq!(back.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["w", "m"]);
    for ((_, back), original) in back.iter().zip([&quantized, &matrix]) {
        assert!(restored(back) == restored(original));
        assert_eq!((back.shape(), back.dtype(), back.bytes()), (original.shape(), original.dtype(), original.bytes()));
        assert_eq!((back.settings(), back.errors().n), (original.settings(), original.errors().n));
    }
    let error = QuantizedData::from_rows(&backwards[1..]).unwrap_err();
    assert!(error.to_string().starts_with("m: its chunks have"), "{error}");
    let error = QuantizedData::from_rows(&backwards[..1]).unwrap_err();
    assert!(error.to_string().starts_with("m: a chunk starts at"), "{error}");
}
