use super::*;
use StoredType::*;

type Tensors<'a> = &'a [(&'a str, StoredType, &'a [i64])];

fn scheme(tensors: Tensors<'_>) -> Option<QuantizationScheme> {
    found(&[], tensors).map(|found| found.scheme)
}

fn found(claims: &[Claim], tensors: Tensors<'_>) -> Option<QuantizedSource> {
    let tensors: Vec<_> = tensors.iter().map(|&(name, stored, shape)| SchemeTensor { name, stored, shape }).collect();
    recognize(claims, &tensors)
}

fn claim(text: &str) -> Option<Claim> {
    claim_of_config(Path::new("config.json"), text.as_bytes())
}

#[test]
fn layouts_of_other_programs_are_recognized() {
    use QuantizationScheme::*;
    let cases: &[(QuantizationScheme, Tensors<'_>)] = &[
        (
            Gptq,
            &[
                ("m.qweight", I32, &[128, 512]),
                ("m.qzeros", I32, &[8, 64]),
                ("m.scales", F16, &[8, 512]),
                ("m.g_idx", I32, &[1024]),
            ],
        ),
        (Gptq, &[("m.qweight", I32, &[128, 512]), ("m.qzeros", I32, &[8, 64]), ("m.scales", F16, &[8, 512])]),
        (Awq, &[("m.qweight", I32, &[1024, 64]), ("m.qzeros", I32, &[8, 64]), ("m.scales", F16, &[8, 512])]),
        (ScaledFp8, &[("m.weight", F8E4M3, &[512, 1024]), ("m.weight_scale_inv", F32, &[4, 8])]),
        (ScaledFp8, &[("m.weight", F8E5M2, &[512, 1024]), ("m.weight_scale", F32, &[])]),
        (ScaledFp8, &[("m.weight", F8E4M3, &[512, 1024]), ("m.scale_weight", F32, &[])]),
        (ScaledFp8, &[("m.weight", F8E4M3, &[512, 1024]), ("scaled_fp8", F8E4M3, &[2])]),
        (ScaledFp8, &[("m.weight", F8E4M3, &[512, 1024]), ("m.qscale_weight", BF16, &[])]),
        (
            ScaledFp8,
            &[("experts.gate_up_proj", F8E4M3, &[4, 512, 64]), ("experts.gate_up_proj_scale", F32, &[4, 1, 64])],
        ),
        (CompressedTensors, &[("m.weight_packed", I32, &[512, 128]), ("m.weight_scale", BF16, &[512, 8])]),
        (ScaledIntegers, &[("m.weight", I8, &[512, 1024]), ("m.weight_scale", BF16, &[512, 1])]),
        (ScaledIntegers, &[("m.weight", I8, &[512, 1024]), ("m.s", F32, &[512, 16])]),
        (ScaledIntegers, &[("m.weight", U8, &[512, 512]), ("m.scales_and_zeros", BF16, &[16, 512, 2])]),
        (ScaledIntegers, &[("m.weight_qdata", U8, &[512, 512]), ("m.weight_scale", BF16, &[512, 8])]),
        (ScaledIntegers, &[("m.weight", U8, &[512, 512]), ("m.weight.absmax", F32, &[4096])]),
        (ScaledIntegers, &[("m.weight_quantized", I8, &[512, 512]), ("m.weight_scale_per_channel", F32, &[512])]),
        (
            Nvfp4,
            &[("m.weight", U8, &[512, 512]), ("m.weight_scale", F8E4M3, &[512, 64]), ("m.weight_scale_2", F32, &[])],
        ),
        (Mlx, &[("m.weight", U32, &[512, 128]), ("m.scales", BF16, &[512, 16]), ("m.biases", BF16, &[512, 16])]),
        (Mlx, &[("m.weight", U32, &[512, 128]), ("m.scales", U8, &[512, 32])]),
        (
            Sdnq,
            &[("m.weight", U8, &[512, 16, 64]), ("m.scale", F32, &[512, 16, 1]), ("m.zero_point", F32, &[512, 16, 1])],
        ),
        (Sdnq, &[("m.weight", U8, &[4096]), ("m.scale", F32, &[512, 16, 1])]),
        (Quanto, &[("m.weight._data", I8, &[512, 1024]), ("m.weight._scale", BF16, &[512, 1])]),
        (
            Bitsandbytes4,
            &[("m.weight", U8, &[9, 1]), ("m.weight.absmax", U8, &[9]), ("m.weight.quant_map", F32, &[16])],
        ),
        (Bitsandbytes4, &[("m.weight", U8, &[9, 1]), ("m.weight.quant_state.bitsandbytes__nf4", U8, &[120])]),
        (Bitsandbytes8, &[("m.weight", I8, &[512, 1024]), ("m.SCB", F32, &[512])]),
        (Mxfp4, &[("m.down_proj_blocks", U8, &[4, 512, 16, 16]), ("m.down_proj_scales", U8, &[4, 512, 16])]),
        (Torchao, &[("m._weight_qdata", I8, &[512, 1024]), ("m._weight_scale", F32, &[512])]),
        (Hqq, &[("m.W_q", U8, &[512, 512]), ("m.scale", F16, &[8192, 1]), ("m.zero", F16, &[8192, 1])]),
        (Eetq, &[("m.weight", I8, &[512, 1024]), ("m.weight_scales", F16, &[1024])]),
        (
            SvdQuant,
            &[("m.qweight", I8, &[512, 512]), ("m.wscales", BF16, &[16, 512]), ("m.smooth_factor", BF16, &[1024])],
        ),
        (ComfyUi, &[("m.weight", I8, &[512, 1024]), ("m.comfy_quant", U8, &[40])]),
        (
            Aqlm,
            &[("m.codes", I8, &[64, 128, 1]), ("m.codebooks", F16, &[1, 256, 1, 8]), ("m.scales", F16, &[64, 1, 1, 1])],
        ),
        (Exl2, &[("m.q_weight", I32, &[64, 128]), ("m.q_groups", I16, &[64])]),
    ];
    for (expected, tensors) in cases {
        assert_eq!(scheme(tensors).as_ref(), Some(expected), "{tensors:?}");
    }
}

#[test]
fn models_with_scales_of_their_own_are_plain() {
    let cases: &[Tensors<'_>] = &[
        // Cast to FP8, all of it.
        &[("m.weight", F8E4M3, &[512, 1024]), ("m.bias", F8E4M3, &[512]), ("norm.scale", F8E4M3, &[512])],
        &[("m.weight", F8E4M3, &[512, 1024]), ("m.scale", F8E4M3, &[512])],
        &[("m.weight", F8E4M3, &[512, 1024]), ("norm.query_norm.scale", F32, &[128])],
        // LayerScale, RMSNorm, upsampling by several factors.
        &[
            ("ls1.gamma", F32, &[512]),
            ("ls2.scale", F32, &[512]),
            ("up.weight", F16, &[512, 512]),
            ("up.scales", F32, &[4]),
        ],
        &[("m.weight", BF16, &[512, 1024]), ("m.weight_scale", F32, &[512])],
        // Codebooks of audio.
        &[("quantizer.codebook", F32, &[1024, 8]), ("quantizer.vq.layers.0.codebook.embed", F32, &[1024, 128])],
        &[("quantizer.quantizers.0.codebook.weight", F32, &[1024, 8]), ("codes", I64, &[4, 8])],
        &[("q.codebooks", F32, &[4, 256, 8]), ("q.scales", F32, &[4])],
        // Buffers.
        &[("h.0.attn.bias", U8, &[1, 1, 1024, 1024]), ("h.0.attn.masked_bias", F32, &[])],
        &[("bn.weight", F32, &[64]), ("bn.num_batches_tracked", I64, &[])],
        &[("swin.relative_position_index", I64, &[49, 49]), ("swin.logit_scale", F32, &[4, 1, 1])],
        &[("t5.relative_attention_bias.weight", F32, &[32, 8]), ("embed.position_ids", I64, &[1, 77])],
        &[("fake_quant.weight", F32, &[64, 64]), ("fake_quant.scale", F32, &[1]), ("fake_quant.zero_point", I32, &[1])],
    ];
    for tensors in cases {
        assert_eq!(scheme(tensors), None, "{tensors:?}");
    }
}

#[test]
fn configurations_name_schemes() {
    use QuantizationScheme::*;
    let cases = [
        (r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#, Gptq),
        (r#"{"quantization_config": {"quant_method": "AWQ"}}"#, Awq),
        (r#"{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}"#, Bitsandbytes4),
        (r#"{"quantization_config": {"load_in_8bit": true}}"#, Bitsandbytes8),
        (r#"{"quantization_config": {"quant_method": "compressed-tensors"}}"#, CompressedTensors),
        (r#"{"compression_config": {"quant_method": "compressed_tensors"}}"#, CompressedTensors),
        (r#"{"quantization_config": {"quant_algo": "NVFP4"}}"#, Nvfp4),
        (r#"{"quantization": {"group_size": 64, "bits": 4}}"#, Mlx),
        (r#"{"text_config": {"quantization_config": {"quant_method": "fp8"}}}"#, ScaledFp8),
        ("\u{feff}{\"quantization_config\": {\"quant_method\": \"sdnq\"}}", Sdnq),
        (r#"{"quantization_config": {"quant_method": "tomorrow"}}"#, Other("tomorrow".to_string())),
    ];
    for (text, expected) in cases {
        assert_eq!(claim(text).map(|claim| claim.scheme), Some(expected), "{text}");
    }
    let plain = [
        "{}",
        "",
        "[",
        r#"{"quantization_config": null}"#,
        r#"{"quantization_config": {}}"#,
        r#"{"quantizer": {"bits": 4}}"#,
        r#"{"bits": 4, "group_size": 64}"#,
        r#"{"quantization": {"quant_algo": null, "kv_cache_quant_algo": "FP8"}}"#,
    ];
    for text in plain {
        assert_eq!(claim(text), None, "{text}");
    }
    let of = |file: &str, text: &str| claim_of_config(Path::new(file), text.as_bytes()).map(|claim| claim.scheme);
    assert_eq!(of("hf_quant_config.json", r#"{"quantization": {"quant_algo": "FP8"}}"#), Some(ModelOpt));
    assert_eq!(of("quantize_config.json", r#"{"bits": 4, "group_size": 128, "desc_act": false}"#), Some(Gptq));
    assert_eq!(of("quant_config.json", r#"{"w_bit": 4, "q_group_size": 128, "quant_method": "awq"}"#), Some(Awq));
}

#[test]
fn claims_are_believed_if_tensors_agree() {
    let gptq = claim(r#"{"quantization_config": {"quant_method": "gptq"}}"#).unwrap();
    let plain = found(std::slice::from_ref(&gptq), &[("m.weight", BF16, &[64, 64]), ("ids", I64, &[1, 64])]).unwrap();
    assert!(!plain.is_in_tensors);
    let codes = found(&[gptq], &[("m.codes_of_tomorrow", I32, &[64, 64])]).unwrap();
    assert!(codes.is_in_tensors);
    assert_eq!(codes.to_string(), "GPTQ (config.json has quantization_config with quant_method gptq)");
}
