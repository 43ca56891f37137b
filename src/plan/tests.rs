use std::path::Path;
use std::sync::Arc;

use arrow_quant_formats::manifest::{Limit, Reason};
use arrow_quant_kernels::{Bits, BlockType, GroupSize, Scheme};

use crate::config::WeightType;

use super::*;
use crate::model::tests::{directory, weights};
use crate::{DiffusionQuantConfig, Model};

/// A target of 8 bits in groups of 16 to 64 and of three block types, which keeps embeddings.
fn narrow() -> Allowed {
    Allowed {
        target: "narrow",
        bits: &Bits::ALL[Bits::ALL.len() - 1..],
        group_sizes: &GroupSize::ALL[..3],
        schemes: &[Scheme::Symmetric],
        block_types: &[BlockType::Q4K, BlockType::Q5_0, BlockType::Q8_0],
        floats: &[],
        whole_groups: false,
        smoothing: true,
        must_stay: |tensor| tensor.name.starts_with("embed"),
        file_overhead: 0.0,
        chunk_overhead: 0.0,
    }
}

/// A model of two matrices and a vector, planned for the target.
fn planned(config: &DiffusionQuantConfig, table: Option<&str>) -> crate::Result<ModelPlan> {
    let tensors: [(&str, &[i64]); 3] = [("embed.weight", &[96, 64]), ("norm", &[64]), ("proj.weight", &[64, 64])];
    let files = [("m.safetensors", weights(&tensors)), ("plan.csv", table.unwrap_or_default().into())];
    let directory = directory(&files);
    let model = Arc::new(Model::open(&directory.path().join("m.safetensors")).unwrap());
    let detected = detect(&Evidence::of(&model).unwrap());
    let path = directory.path().join("plan.csv");
    let requests = vec![Request::Free; model.tensors().len()];
    ModelPlan::new(model, config, table.map(|_| Path::new(&path)), &detected, (narrow(), &requests))
}

fn config(bits: i64, group_size: i64, scheme: &str) -> DiffusionQuantConfig {
    DiffusionQuantConfig {
        weight_type: WeightType::Int(bits.try_into().unwrap()),
        group_size: group_size.try_into().unwrap(),
        scheme: scheme.parse().unwrap(),
        ..Default::default()
    }
}

fn reasons(plan: &ModelPlan) -> Vec<String> {
    plan.tensors.iter().map(|tensor| format!("{:?} {}", tensor.choice.map(|c| c.bits().get()), tensor.reason)).collect()
}

#[test]
fn what_the_target_cannot_hold_is_kept_and_the_plan_says_why() {
    let of = |bits, group_size, scheme| reasons(&planned(&config(bits, group_size, scheme), None).unwrap());
    assert_eq!(of(8, 64, "symmetric"), ["None narrow keeps it", "None 1-D", "Some(8) bit_width"]);
    let message = planned(&config(4, 64, "symmetric"), None).unwrap_err().to_string();
    assert_eq!(message, "type is 'int4', which the target narrow cannot hold; allowed for it: int8, q4_k, q5_0, q8_0");
    assert_eq!(of(8, 128, "symmetric")[2], "None narrow has no groups of 128");
    assert_eq!(of(8, 64, "affine")[2], "None narrow has no affine scheme");
}

#[test]
fn a_target_size_chooses_among_what_the_target_holds() {
    let config = DiffusionQuantConfig { target_bpw: Some(20.0), ..config(4, 128, "symmetric") };
    let plan = planned(&config, None).unwrap();
    let open: Vec<bool> = plan.tensors.iter().map(|tensor| tensor.is_open).collect();
    assert_eq!(open, [false, false, true], "bits and group size are not those of the configuration");
    let choices: Vec<_> = plan
        .allowed
        .choices(config.weight_type)
        .iter()
        .map(|c| (c.bits().get(), c.group_size().unwrap().get()))
        .collect();
    assert_eq!(choices, [(8, 16), (8, 32), (8, 64)]);
}

#[test]
fn a_fallback_goes_to_a_width_that_the_target_holds() {
    let mut plan = planned(&config(8, 64, "symmetric"), None).unwrap();
    let narrow = Choice::Grouped { bits: Bits::ALL[0], group_size: GroupSize::ALL[0] };
    plan.tensors[2].choice = Some(narrow);
    plan.widen(2);
    assert_eq!(plan.tensors[2].choice.map(|choice| choice.bits().get()), Some(8));
    plan.widen(2);
    assert_eq!(plan.tensors[2].choice, None);
}

#[test]
fn a_row_of_a_plan_that_the_target_cannot_hold_is_refused() {
    let table = "component,tensor,bits,group_size\n,embed.weight,,\n,norm,,\n,proj.weight,4,64\n";
    let message = planned(&config(8, 64, "symmetric"), Some(table)).unwrap_err().to_string();
    assert!(
        message.ends_with("proj.weight: bits is 4, but narrow has no 4-bit codes: choose others, or NULL to keep it")
    );
}

fn blocks(name: &str) -> DiffusionQuantConfig {
    DiffusionQuantConfig { weight_type: name.parse().unwrap(), ..config(8, 64, "symmetric") }
}

fn names(plan: &ModelPlan) -> Vec<String> {
    let name = |choice: Option<Choice>| choice.map_or("kept", |choice| choice.weight_type().name());
    plan.tensors.iter().map(|tensor| format!("{}: {}", name(tensor.choice), tensor.reason)).collect()
}

#[test]
fn a_block_type_that_the_target_does_not_hold_is_refused() {
    let message = planned(&blocks("q6_k"), None).unwrap_err().to_string();
    assert_eq!(message, "type is 'q6_k', which the target narrow cannot hold; allowed for it: int8, q4_k, q5_0, q8_0");
}

#[test]
fn blocks_that_do_not_divide_rows_give_way_to_shorter_ones() {
    let found = names(&planned(&blocks("q4_k"), None).unwrap());
    let rows = "rows of 64 are no multiple of 256, as q4_k needs";
    assert_eq!(found, ["kept: narrow keeps it".to_string(), "kept: 1-D".to_string(), format!("q5_0: {rows}")]);
    let table = "component,tensor,bits,group_size,type\n,embed.weight,,,\n,norm,,,\n,proj.weight,,,q4_k\n";
    let message = planned(&blocks("q8_0"), Some(table)).unwrap_err().to_string();
    assert!(message.ends_with(&format!("type is 'q4_k', but {rows}: choose others, or NULL to keep it")), "{message}");
    let table = table.replace("q4_k", "q5_0");
    assert_eq!(names(&planned(&blocks("q8_0"), Some(&table)).unwrap())[2], "q5_0: plan");
}

#[test]
fn blocks_fall_back_to_the_next_type_that_the_target_holds() {
    let mut plan = planned(&blocks("q5_0"), None).unwrap();
    assert_eq!(names(&plan)[2], "q5_0: type");
    plan.widen(2);
    assert_eq!(plan.tensors[2].choice, Some(Choice::Block(BlockType::Q8_0)));
    plan.widen(2);
    assert_eq!(plan.tensors[2].choice, None);
    assert_eq!(narrow().wider(Choice::Block(BlockType::Q4K)), Some(Choice::Block(BlockType::Q8_0)));
}

#[test]
fn a_size_for_blocks_chooses_among_blocks() {
    let config = DiffusionQuantConfig { target_bpw: Some(20.0), ..blocks("q4_k") };
    let plan = planned(&config, None).unwrap();
    assert!(plan.tensors[2].is_open);
    let choices = plan.allowed.choices(config.weight_type);
    let names: Vec<_> = choices.iter().map(|choice| choice.weight_type().name()).collect();
    assert_eq!(names, ["q4_k", "q5_0", "q8_0"]);
    let [of_256, of_32] = [BlockType::Q4K, BlockType::Q8_0].map(Choice::Block);
    let proj = &plan.model.tensors()[2];
    assert!(!plan.allowed.fits_rows(proj, of_256) && plan.allowed.fits_rows(proj, of_32));
}

#[test]
fn choices_are_read_back() {
    for choice in narrow().choices("int8".parse().unwrap()).into_iter().chain([Choice::Block(BlockType::Nvfp4)]) {
        let json = serde_json::to_string(&choice).unwrap();
        assert_eq!(serde_json::from_str::<Choice>(&json).unwrap(), choice, "{json}");
    }
    assert_eq!(serde_json::to_string(&Choice::Block(BlockType::Q4K)).unwrap(), r#"{"type":"q4_k"}"#);
}

#[test]
fn reasons_of_targets_are_read_back() {
    let reason = Reason::NotHeld { target: "narrow".to_string(), limit: Limit::GroupSize { group_size: 256 } };
    let json = serde_json::to_string(&reason).unwrap();
    assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason, "{json}");
}
