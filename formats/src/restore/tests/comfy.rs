//! Floats of four bits, and the layers of ComfyUI.

use super::*;

/// Two rows of sixteen floats of four bits, pairs with the low one first.
fn nibbles() -> (Vec<u8>, Vec<f32>) {
    let bytes: Vec<u8> = (0..16_u8).map(|i| i.wrapping_mul(37) ^ 0x5a).collect();
    let values = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).map(|code| numbers::E2M1[usize::from(code)]);
    (bytes.clone(), values.collect())
}

#[test]
fn nvfp4_is_multiplied_or_divided_by_the_scale_of_all() {
    let (bytes, values) = nibbles();
    let modelopt = Memory::default()
        .with("m.weight", U8, &[2, 8], bytes.clone())
        .with("m.weight_scale", F8E4M3, &[2, 1], [ONE, TWO])
        .floats("m.weight_scale_2", &[], &[0.3]);
    let expected = |factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
        values.iter().enumerate().map(|(i, value)| value * factor(i / 16)).collect()
    };
    let (_, shape, found) = modelopt.restored(QuantizationScheme::Nvfp4, Value::Null);
    assert_eq!(shape, [2, 16]);
    assert_eq!(found, expected(&|row| [1.0, 2.0][row] * 0.3));
    let divided = Memory::default()
        .with("m.weight_packed", U8, &[2, 8], bytes.clone())
        .with("m.weight_scale", F8E4M3, &[2, 1], [ONE, TWO])
        .floats("m.weight_global_scale", &[1], &[3.0]);
    let (name, _, found) = divided.restored(QuantizationScheme::CompressedTensors, Value::Null);
    assert_eq!((name.as_str(), found), ("m.weight", expected(&|row| [1.0, 2.0][row] / 3.0)));
    let lost =
        Memory::default().with("m.weight", U8, &[2, 8], bytes).with("m.weight_scale", F8E4M3, &[2, 1], [ONE, TWO]);
    lost.refused(QuantizationScheme::Nvfp4, Value::Null, &["'m.weight_scale_2' beside it"]);
}

#[test]
fn experts_of_mxfp4_are_transposed() {
    let bytes: Vec<u8> = (0..2 * 3 * 2 * 16_u32).map(|i| (i * 91 + 7) as u8).collect();
    let exponents: Vec<u8> = (0..12).map(|i| 120 + i).collect();
    let memory = Memory::default().with("experts.up_blocks", U8, &[2, 3, 2, 16], bytes.clone()).with(
        "experts.up_scales",
        U8,
        &[2, 3, 2],
        exponents.clone(),
    );
    let (name, shape, found) = memory.restored(QuantizationScheme::Mxfp4, Value::Null);
    assert_eq!((name.as_str(), shape.as_slice()), ("experts.up", &[2, 64, 3][..]));
    for (i, found) in found.into_iter().enumerate() {
        let (expert, column, row) = (i / 192, i / 3 % 64, i % 3);
        let group = (expert * 3 + row) * 2 + column / 32;
        let byte = bytes[group * 16 + column % 32 / 2];
        let code = if column % 2 == 0 { byte & 15 } else { byte >> 4 };
        assert_eq!(found, numbers::E2M1[usize::from(code)] * 2_f32.powi(i32::from(exponents[group]) - 127));
    }
}

/// A layer of ComfyUI, whose description is a tensor.
fn layer(about: Value, weight: (StoredType, &[i64], Vec<u8>)) -> Memory {
    let about = about.to_string().into_bytes();
    let (stored, shape, bytes) = weight;
    Memory::default().with("m.comfy_quant", U8, &[about.len() as i64], about).with("m.weight", stored, shape, bytes)
}

#[test]
fn layers_of_comfyui_say_their_format() {
    let comfy = |memory: Memory| memory.restored(QuantizationScheme::ComfyUi, Value::Null).2;
    let bytes = layer(json!({"format": "int8_tensorwise"}), (I8, &[2, 2], vec![1, 2, 3, 0xff]));
    assert_eq!(comfy(bytes.floats("m.weight_scale", &[2, 1], &[2.0, 3.0])), [2.0, 4.0, 9.0, -3.0]);
    let rotated = json!({"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 4});
    let rotated = layer(rotated, (I8, &[1, 4], vec![1, 2, 3, 5])).floats("m.weight_scale", &[], &[2.0]);
    assert_eq!(comfy(rotated), [1.0, 5.0, 7.0, 9.0]);
    let affine = layer(json!({"format": "awq_w4a16"}), (I8, &[2, 2], vec![0x98, 0x10, 0xf8, 0x08]))
        .floats("m.weight_scale", &[2, 2], &[1.0, 2.0, 3.0, 4.0])
        .floats("m.weight_zeros", &[2, 2], &[0.5, 0.0, 1.0, 2.0]);
    assert_eq!(comfy(affine), [0.5, 1.5, -23.0, -20.0, 0.0, 14.0, 2.0, -30.0]);
    let fp8 = layer(json!({"format": "float8_e4m3fn"}), (F8E4M3, &[1, 2], vec![ONE, TWO]));
    assert_eq!(comfy(fp8.floats("m.weight_scale", &[], &[3.0])), [3.0, 6.0]);
    let products = layer(json!({"format": "asym_w4a8_int8", "convrot_groupsize": 4}), (I8, &[1, 2], vec![0x98, 0xff]))
        .with("m.weight_s_rel", F8E4M3, &[1, 1], [TWO])
        .floats("m.weight_s_channel", &[1], &[0.5]);
    assert_eq!(comfy(products), [0.5, 0.5, 6.5, 7.5]);
    let unknown = layer(json!({"format": "int3_odd"}), (I8, &[1, 1], vec![1]));
    unknown.refused(QuantizationScheme::ComfyUi, Value::Null, &["format is int3_odd, allowed: float8_e4m3fn"]);
    let lost = layer(json!({"format": "float8_e4m3fn"}), (F8E4M3, &[1, 2], vec![ONE, TWO]));
    lost.refused(QuantizationScheme::ComfyUi, Value::Null, &["'m.weight_scale' beside it"]);
}

#[test]
fn scales_of_comfyui_are_in_tiles() {
    // The scale of row r and column c: tiles of 128 by 4, of which each has 32 lines of four rows.
    let (rows, columns) = (130, 2);
    let mut tiles = vec![0_u8; 256 * 4];
    let byte = |row: usize, column: usize| 0x20 + ((row * 2 + column) % 64) as u8;
    for row in 0..rows {
        for column in 0..columns {
            tiles[row / 128 * 512 + row % 32 * 16 + row % 128 / 32 * 4 + column] = byte(row, column);
        }
    }
    let memory = layer(json!({"format": "nvfp4"}), (U8, &[130, 16], vec![0x24; 130 * 16]))
        .with("m.weight_scale", F8E4M3, &[256, 4], tiles)
        .floats("m.weight_scale_2", &[], &[0.5]);
    let found = memory.restored(QuantizationScheme::ComfyUi, Value::Null).2;
    let of_byte = numbers::Number::of(F8E4M3).unwrap().of_bytes();
    for (i, found) in found.into_iter().enumerate() {
        let (row, column) = (i / 32, i % 32);
        let level = if column % 2 == 0 { 1.0 } else { 2.0 };
        assert_eq!(found, level * (of_byte[usize::from(byte(row, column / 16))] * 0.5), "{row}, {column}");
    }
}
