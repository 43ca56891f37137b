//! Adapters, which change the weights of a model and are none of it.

/// Parts of the names of tensors of adapters: LoRA of PEFT, diffusers and kohya, LoHa, LoKr and DoRA.
const PARTS: &[&str] = &["lora_", "lora.", "hada_w", "lokr_w", "dora_scale", "oft_blocks"];

/// Whether a file is an adapter by the names of all its tensors.
pub fn is_adapter<'a>(tensors: impl IntoIterator<Item = &'a str>) -> bool {
    let mut has_any = false;
    for tensor in tensors {
        let of_adapter = PARTS.iter().any(|part| tensor.contains(part));
        has_any |= of_adapter;
        // Scales of adapters are called so in all of them.
        if !of_adapter && !tensor.ends_with(".alpha") {
            return false;
        }
    }
    has_any
}
