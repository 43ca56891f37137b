//! Tensors that only quantized checkpoints have, as a table: how a name ends, which type it has, and what is beside it.
//!
//! Sources: the layouts that the programs write, as they were read and run; `docs/` of the programs say little of them.

use std::collections::HashMap;

use super::{QuantizationScheme as Scheme, SchemeTensor, Sign};
use crate::StoredType::{self, *};

const FLOATS: &[StoredType] = &[F16, BF16, F32, F64];
const BYTES: &[StoredType] = &[U8, I8];
const WORDS: &[StoredType] = &[I32, U32];
const FP8: &[StoredType] = &[F8E4M3, F8E5M2, F8E4M3Fnuz, F8E5M2Fnuz];
const SMALL_FLOATS: &[StoredType] = &[F8E4M3, F8E5M2, F8E4M3Fnuz, F8E5M2Fnuz, F4, F6E2M3, F6E3M2];
/// Of scales: floats that a copy cast to FP8 does not have, and powers of two.
const SCALES: &[StoredType] = &[F16, BF16, F32, F64, F8E8M0, U8];
const ANY_SCALES: &[StoredType] = &[F16, BF16, F32, F64, F8E8M0, F8E4M3, U8, I8];
const INTEGERS: &[StoredType] = &[U8, I8, I16, U16, I32, U32, I64, U64];

/// A tensor of a scheme.
struct Rule {
    scheme: Scheme,
    /// How its name ends.
    ending: &'static str,
    types: &'static [StoredType],
    /// The least number of its dimensions: scales of single layers are none.
    dimensions: usize,
    /// How names of tensors beside it end, after the same beginning, with their types. One of them is enough; no entry if the
    /// tensor tells by itself.
    beside: &'static [(&'static str, &'static [StoredType])],
}

const fn rule(
    scheme: Scheme,
    ending: &'static str,
    types: &'static [StoredType],
    dimensions: usize,
    beside: &'static [(&'static str, &'static [StoredType])],
) -> Rule {
    Rule { scheme, ending, types, dimensions, beside }
}

/// The first rule that matches a tensor tells its scheme, so those that ask for more come first.
const RULES: &[Rule] = &[
    rule(
        Scheme::SvdQuant,
        ".qweight",
        BYTES,
        2,
        &[(".wscales", ANY_SCALES), (".wtscale", ANY_SCALES), (".smooth_factor", FLOATS)],
    ),
    rule(Scheme::Eetq, ".qweight", BYTES, 2, &[(".weight_scales", FLOATS), (".scales", FLOATS)]),
    rule(Scheme::Gptq, ".qweight", WORDS, 2, &[(".g_idx", WORDS)]),
    rule(Scheme::Awq, ".qweight", WORDS, 2, &[(".scales", FLOATS), (".qzeros", WORDS)]),
    rule(Scheme::Gptq, ".B", WORDS, 2, &[(".s", FLOATS)]),
    rule(
        Scheme::Exl2,
        ".q_weight",
        WORDS,
        2,
        &[(".q_groups", INTEGERS), (".q_invperm", INTEGERS), (".q_scale_max", FLOATS)],
    ),
    rule(
        Scheme::Exl3,
        ".trellis",
        &[I16, U16],
        2,
        &[(".suh", FLOATS), (".svh", FLOATS), (".su", INTEGERS), (".sv", INTEGERS)],
    ),
    rule(Scheme::Mlc, ".q_weight", WORDS, 2, &[(".q_scale", FLOATS)]),
    rule(
        Scheme::CompressedTensors,
        ".weight_packed",
        INTEGERS,
        2,
        &[(".weight_scale", ANY_SCALES), (".weight_shape", INTEGERS)],
    ),
    rule(Scheme::Torchao, "_weight_qdata", INTEGERS, 2, &[("_weight_scale", ANY_SCALES)]),
    rule(Scheme::Torchao, "_weight_qdata", FP8, 2, &[("_weight_scale", ANY_SCALES)]),
    rule(Scheme::Torchao, ":qdata", INTEGERS, 2, &[(":scale", ANY_SCALES)]),
    rule(Scheme::Torchao, ":qdata", FP8, 2, &[(":scale", ANY_SCALES)]),
    rule(Scheme::Torchao, ".qdata", INTEGERS, 2, &[(".scale", ANY_SCALES), (".scale_and_zero", FLOATS)]),
    rule(Scheme::Quanto, "._data", INTEGERS, 2, &[("._scale", FLOATS)]),
    rule(Scheme::Quanto, "._data", FP8, 2, &[("._scale", FLOATS)]),
    rule(Scheme::Quanto, "._data._data", INTEGERS, 2, &[("._scale", FLOATS)]),
    rule(Scheme::Hqq, ".W_q", INTEGERS, 1, &[]),
    rule(Scheme::Hqq, ".W_q", FLOATS, 2, &[(".scale", FLOATS), (".zero", FLOATS), (".meta", INTEGERS)]),
    rule(Scheme::Aqlm, ".codes", INTEGERS, 2, &[(".codebooks", FLOATS)]),
    rule(Scheme::QuipSharp, ".Qidxs", INTEGERS, 2, &[(".SU", ANY_SCALES), (".SV", ANY_SCALES)]),
    rule(Scheme::Vptq, ".indices", INTEGERS, 2, &[(".centroids", FLOATS), (".centroids.weight", FLOATS)]),
    rule(Scheme::Spqr, ".dense_weights", INTEGERS, 1, &[]),
    rule(Scheme::ComfyUi, ".comfy_quant", BYTES, 1, &[]),
    rule(Scheme::ScaledFp8, "scaled_fp8", FP8, 0, &[]),
    rule(Scheme::ScaledFp8, "scaled_fp8", FLOATS, 0, &[]),
    rule(Scheme::Mxfp4, "_blocks", BYTES, 3, &[("_scales", &[U8, I8, F8E8M0])]),
    rule(Scheme::Mxfp4, ".blocks", BYTES, 3, &[(".scales", &[U8, I8, F8E8M0])]),
    rule(Scheme::Nvfp4, ".weight", BYTES, 2, &[(".weight_scale_2", FLOATS), (".weight_global_scale", FLOATS)]),
    rule(Scheme::Bitsandbytes8, ".weight", BYTES, 2, &[(".SCB", FLOATS), (".weight_format", INTEGERS)]),
    rule(Scheme::Bitsandbytes4, ".absmax", &[U8, F32, F16, BF16], 1, &[(".quant_map", FLOATS)]),
    rule(Scheme::Mlx, ".weight", &[U32], 2, &[(".scales", ANY_SCALES)]),
    rule(Scheme::Eetq, ".weight", BYTES, 2, &[(".weight_scales", FLOATS)]),
    rule(Scheme::Higgs, ".weight", INTEGERS, 2, &[(".tables2", FLOATS), (".tables", FLOATS)]),
    rule(Scheme::Sdnq, ".weight", BYTES, 2, &[(".zero_point", FLOATS)]),
    // Packed weights of SDNQ are flat.
    rule(Scheme::Sdnq, ".weight", BYTES, 1, &[(".scale", FLOATS)]),
    rule(
        Scheme::ScaledFp8,
        ".weight",
        SMALL_FLOATS,
        2,
        &[
            (".weight_scale", SCALES),
            (".weight_scale_inv", SCALES),
            (".weight_scales", SCALES),
            (".scale_weight", SCALES),
            (".qscale_weight", SCALES),
            (".scale", SCALES),
            (".weight_scale_2", SCALES),
            (".weight.scale", SCALES),
            (".weight_quantizer.scale", SCALES),
            (".weights_scaling_factor", SCALES),
        ],
    ),
    rule(
        Scheme::ScaledIntegers,
        ".weight",
        INTEGERS,
        2,
        &[
            (".weight_scale", ANY_SCALES),
            (".weight_scale_inv", ANY_SCALES),
            (".scales", ANY_SCALES),
            (".scale", FLOATS),
            (".weight_scales", ANY_SCALES),
            (".scale_weight", FLOATS),
            (".s", FLOATS),
            (".weight_zero_point", INTEGERS),
            (".weight_quantizer.scale", FLOATS),
            (".weights_scaling_factor", FLOATS),
        ],
    ),
    // Experts and other parameters that are no `weight`.
    rule(
        Scheme::ScaledFp8,
        "",
        SMALL_FLOATS,
        2,
        &[
            ("_scale", SCALES),
            ("_scale_inv", SCALES),
            (".scale", SCALES),
            ("_scales", SCALES),
            ("_weight_scale", SCALES),
        ],
    ),
    rule(
        Scheme::ScaledIntegers,
        "",
        &[U8, I8, F4],
        3,
        &[("_scale", ANY_SCALES), ("_scales", ANY_SCALES), ("_scale_inv", ANY_SCALES)],
    ),
];

/// Part of the name of what bitsandbytes keeps of a tensor.
const BITSANDBYTES_STATE: &str = ".quant_state.bitsandbytes__";

/// The scheme of the first tensor that a rule matches.
pub(super) fn first_match(tensors: &[SchemeTensor<'_>]) -> Option<(Scheme, Sign)> {
    let names: HashMap<&str, SchemeTensor<'_>> = tensors.iter().map(|tensor| (tensor.name, *tensor)).collect();
    // Rules that need more tell more: a scheme may have layers that a more general rule matches first.
    RULES.iter().find_map(|rule| tensors.iter().find_map(|tensor| rule.matches(tensor, &names))).or_else(|| {
        let state = tensors.iter().find(|tensor| tensor.name.contains(BITSANDBYTES_STATE));
        state.map(|state| (Scheme::Bitsandbytes4, sign(state, ""))).or_else(|| scaled_integers(tensors))
    })
}

/// Layouts that nobody has heard of: a matrix of integers that is called weight, with floats in the same module that are called
/// scales.
fn scaled_integers(tensors: &[SchemeTensor<'_>]) -> Option<(Scheme, Sign)> {
    let is_scale = |tensor: &&SchemeTensor<'_>| {
        let (_, own) = of_module(tensor.name);
        FLOATS.contains(&tensor.stored) && ["scale", "absmax"].iter().any(|part| own.contains(part))
    };
    let scales: HashMap<&str, &str> =
        tensors.iter().filter(is_scale).map(|tensor| (of_module(tensor.name).0, tensor.name)).collect();
    tensors.iter().find_map(|tensor| {
        let (module, own) = of_module(tensor.name);
        let is_weight = own.contains("weight") && [U8, I8, I32, U32].contains(&tensor.stored) && tensor.shape.len() > 1;
        let beside = scales.get(module).filter(|_| is_weight && !module.is_empty())?;
        Some((Scheme::ScaledIntegers, sign(tensor, beside)))
    })
}

/// The module of a tensor, and its name in there: that of `m.weight.absmax` is `m`.
fn of_module(name: &str) -> (&str, &str) {
    let (module, _) = name.rsplit_once('.').unwrap_or(("", name));
    let module = module.strip_suffix(".weight").unwrap_or(module);
    (module, &name[module.len()..])
}

impl Rule {
    fn matches(&self, tensor: &SchemeTensor<'_>, names: &HashMap<&str, SchemeTensor<'_>>) -> Option<(Scheme, Sign)> {
        let beginning = tensor.name.strip_suffix(self.ending)?;
        if !self.types.contains(&tensor.stored) || tensor.shape.len() < self.dimensions {
            return None;
        }
        if self.beside.is_empty() {
            return Some((self.scheme.clone(), sign(tensor, "")));
        }
        let beside = self.beside.iter().find_map(|(ending, types)| {
            let name = format!("{beginning}{ending}");
            let found = names.get(name.as_str()).filter(|found| types.contains(&found.stored))?;
            Some(*found)
        })?;
        let scheme = match self.scheme {
            Scheme::Awq if is_packed_by_rows(tensor, beginning, names) => Scheme::Gptq,
            ref scheme => scheme.clone(),
        };
        Some((scheme, sign(tensor, beside.name)))
    }
}

/// GPTQ packs the inputs of a matrix, so its scales have as many columns as the codes; AWQ packs the outputs.
fn is_packed_by_rows(tensor: &SchemeTensor<'_>, beginning: &str, names: &HashMap<&str, SchemeTensor<'_>>) -> bool {
    let scales = names.get(format!("{beginning}.scales").as_str());
    scales.is_some_and(|scales| scales.shape.last() == tensor.shape.last())
}

fn sign(tensor: &SchemeTensor<'_>, beside: &str) -> Sign {
    Sign::Tensor { name: tensor.name.to_string(), stored: tensor.stored, beside: beside.to_string() }
}
