//! GGUF files.

use super::*;

/// A GGUF file of F32 tensors.
fn gguf(metadata: Vec<(String, crate::gguf::Value)>, tensors: &[(&str, &[i64])]) -> (Header, Memory) {
    let (mut header, mut memory) = (Header { metadata, tensors: Vec::new(), data: 0 }, Memory::default());
    for (name, shape) in tensors {
        let elements = crate::elements(shape);
        let values: Vec<f32> = (0..elements).map(|i| i as f32).collect();
        memory = memory.floats(name, shape, &values);
        let (name, shape) = (name.to_string(), shape.to_vec());
        header.tensors.push(Tensor { name, shape, kind: TensorType::F32, range: 0..4 * elements });
    }
    (header, memory)
}

#[test]
fn gguf_of_a_language_model_has_the_names_and_rows_of_the_original() {
    let text = |key: &str, text: &str| (key.to_string(), text.into());
    let number = |key: &str, number: u32| (key.to_string(), number.into());
    let keys = vec![
        text("general.architecture", "llama"),
        number("llama.attention.head_count", 2),
        number("llama.attention.head_count_kv", 1),
        number("llama.expert_count", 2),
    ];
    let tensors: &[(&str, &[i64])] = &[
        ("token_embd.weight", &[3, 2]),
        ("blk.1.attn_q.weight", &[8, 2]),
        ("blk.1.ffn_up_exps.weight", &[2, 3, 2]),
        ("rope_freqs.weight", &[4]),
        ("other.weight", &[1]),
    ];
    let (header, memory) = gguf(keys, tensors);
    let Ok(found) = ggml_tensors(&header, &memory) else { panic!("refused") };
    let names: Vec<_> = found.iter().map(|tensor| tensor.name.as_str()).collect();
    let up = |expert| format!("model.layers.1.block_sparse_moe.experts.{expert}.w3.weight");
    assert_eq!(
        names,
        ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", &up(0), &up(1), "other.weight"]
    );
    assert_eq!(found[0].recipe.as_ref().unwrap_err(), &F32);
    let of = |tensor: &GgmlTensor| values(tensor.recipe.as_ref().unwrap(), &tensor.shape, &memory);
    // Each head has four rows: of pairs, the first ones come first.
    assert_eq!(of(&found[1]), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15].map(|value| value as f32));
    assert_eq!((found[3].shape.as_slice(), of(&found[3])), (&[3, 2][..], vec![6.0, 7.0, 8.0, 9.0, 10.0, 11.0]));

    let gemma = vec![text("general.architecture", "gemma2")];
    let (header, memory) = gguf(gemma, &[("blk.0.attn_norm.weight", &[3]), ("blk.0.ffn_norm.weight", &[3])]);
    let Ok(found) = ggml_tensors(&header, &memory) else { panic!("refused") };
    assert_eq!(found[0].name, "model.layers.0.input_layernorm.weight");
    assert_eq!(found[1].name, "model.layers.0.pre_feedforward_layernorm.weight");
    assert_eq!(values(found[0].recipe.as_ref().unwrap(), &[3], &memory), [-1.0, 0.0, 1.0]);
}

#[test]
fn gguf_that_cannot_be_put_in_order_is_refused() {
    let keys = vec![("general.architecture".to_string(), "llama".into())];
    let message = |header: &Header, memory: &Memory| match ggml_tensors(header, memory) {
        Err(RestoreError::Tensor(problem)) => problem.to_string(),
        _ => panic!("it was read"),
    };
    let (header, memory) = gguf(keys.clone(), &[("blk.0.attn_q.weight", &[8, 2])]);
    assert!(message(&header, &memory).contains("'blk.0.attn_q.weight': attention.head_count"));
    let (mut header, memory) = gguf(keys, &[("output.weight", &[1, 256])]);
    header.tensors[0].kind = TensorType::Iq2Xxs;
    assert!(message(&header, &memory).contains("the type is IQ2_XXS, allowed: F64, F32"));
}

#[test]
fn gguf_of_another_model_keeps_its_names_and_gets_its_shapes() {
    let shape = ("comfy.gguf.orig_shape.conv.weight".to_string(), vec![2_i32, 1, 3, 1].into());
    let keys = vec![("general.architecture".to_string(), "sdxl".into()), shape];
    let (header, memory) = gguf(keys, &[("conv.weight", &[1, 6])]);
    let Ok(found) = ggml_tensors(&header, &memory) else { panic!("refused") };
    assert_eq!((found[0].name.as_str(), found[0].shape.as_slice()), ("conv.weight", &[2, 1, 3, 1][..]));
}
