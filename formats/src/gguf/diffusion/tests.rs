use super::*;

fn tensor<'a>(name: &'a str, shape: &'a [i64]) -> SourceTensor<'a> {
    SourceTensor { name, shape, same_as: None }
}

fn place<'a>(model: &'a DiffusionModel, name: &str) -> &'a Place {
    model.places.iter().find(|place| place.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn rows_of_diffusers_tensors_become_those_of_original_ones() {
    let square = [64, 64];
    let mlp = [256, 64];
    let tensors = [
        tensor("norm_out.linear.weight", &[128, 64]),
        tensor("single_transformer_blocks.0.attn.norm_k.weight", &[32]),
        tensor("single_transformer_blocks.0.attn.to_k.weight", &square),
        tensor("single_transformer_blocks.0.attn.to_q.weight", &square),
        tensor("single_transformer_blocks.0.attn.to_v.weight", &square),
        tensor("single_transformer_blocks.0.proj_mlp.weight", &mlp),
        tensor("transformer_blocks.0.attn.to_q.weight", &square),
        tensor("transformer_blocks.0.attn.to_v.weight", &square),
        tensor("transformer_blocks.0.attn.to_k.weight", &square),
        tensor("x_embedder.weight", &square),
    ];
    let model = DiffusionModel::new(&tensors, Some("FluxTransformer2DModel"), None).unwrap().unwrap();
    assert_eq!((model.architecture.name, model.has_names_of_diffusers), ("flux", false));
    let linear1 = place(&model, "single_blocks.0.linear1.weight");
    assert_eq!((linear1.sources.as_slice(), linear1.shape.as_slice()), (&[3, 2, 4, 5][..], &[448, 64][..]));
    assert_eq!(place(&model, "double_blocks.0.img_attn.qkv.weight").sources, [6, 8, 7]);
    assert_eq!(place(&model, "single_blocks.0.norm.key_norm.scale").holds, Holds::F32);
    let last = place(&model, "final_layer.adaLN_modulation.1.weight");
    assert_eq!((last.rows, last.holds), (Rows::HalvesSwapped, Holds::Floats));
    assert_eq!(place(&model, "img_in.weight").holds, Holds::Floats);

    let stray = [tensors[6], tensor("transformer_blocks.0.attn.to_x.weight", &square)];
    let error = DiffusionModel::new(&stray, Some("FluxTransformer2DModel"), None).unwrap_err().to_string();
    assert_eq!(
        error,
        "transformer_blocks.0.attn.to_x.weight has no place in a file of flux: flux has no layer of this name"
    );
}

#[test]
fn other_parts_of_a_checkpoint_are_left_out() {
    let shape = [64, 64];
    let tensors = [
        tensor("first_stage_model.decoder.conv_in.weight", &shape),
        tensor("model.diffusion_model.blocks.0.self_attn.norm_q.weight", &[64]),
        tensor("model.diffusion_model.blocks.0.self_attn.q.weight", &shape),
        tensor("model.diffusion_model.head.modulation", &[1, 2, 64]),
        tensor("model.diffusion_model.patch_embedding.weight", &[64, 16, 1, 2, 2]),
        tensor("model_sampling.sigmas", &[1000]),
    ];
    let model = DiffusionModel::new(&tensors, None, None).unwrap().unwrap();
    assert_eq!(model.architecture.name, "wan");
    assert_eq!(model.left_out, [(0, Omission::OtherPart), (5, Omission::OtherPart)]);
    assert_eq!(place(&model, "blocks.0.self_attn.q.weight").holds, Holds::Blocks);
    assert_eq!(place(&model, "head.modulation").holds, Holds::F32);
    assert_eq!(place(&model, "patch_embedding.weight").holds, Holds::F32);
}

#[test]
fn what_is_not_known_is_none() {
    let tensors = [tensor("layer.weight", &[64, 64])];
    assert!(DiffusionModel::new(&tensors, None, None).unwrap().is_none());
    let asked = DiffusionModel::new(&tensors, None, Some("lumina2")).unwrap().unwrap();
    assert_eq!(asked.architecture.name, "lumina2");
}

#[test]
fn kinds_have_the_types_of_their_mix() {
    let of = |mix, name| mixes::block_type(mix, name);
    assert_eq!(of(Mix::Q4KM, "double_blocks.0.img_attn.qkv.weight"), BlockType::Q5K);
    assert_eq!(of(Mix::Q4KM, "blocks.0.ffn.2.weight"), BlockType::Q6K);
    assert_eq!(of(Mix::Q4KS, "blocks.0.ffn.0.weight"), BlockType::Q4K);
    assert_eq!(of(Mix::Q3KM, "transformer_blocks.9.attn.to_v.weight"), BlockType::Q4K);
}
