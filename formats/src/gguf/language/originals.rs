//! What the tensors of a GGUF file of a language model are called in the model that it was made of, and what was done to
//! their rows.

use super::architectures::Architecture;
use super::layout::{EXPERTS, INNER, OF_EXPERT, OUTER, block, module};
use crate::gguf::{Header, Value};

/// The architecture of a file, as far as names and rows depend on it.
#[derive(Debug)]
pub struct Originals {
    architecture: &'static Architecture,
    heads: Option<u32>,
    kv_heads: Option<u32>,
    experts: u32,
}

/// A tensor of a file in the model that it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Its name; of experts, the names in their order.
    pub names: Vec<String>,
    /// Whether it is that of experts.
    pub is_of_experts: bool,
    /// Heads whose rows are reordered, if they are.
    pub heads: Option<u32>,
    /// Whether 1 is added to its weights.
    pub adds_one: bool,
}

impl Originals {
    /// What the keys of a file say. `None` if it is not a language model of a known architecture.
    pub fn new(header: &Header) -> Option<Self> {
        let Some(Value::Text(name)) = header.value("general.architecture") else { return None };
        let architecture = Architecture::all().find(|known| known.name == name)?;
        let number = |key: &str| {
            let number = header.value(&format!("{name}.{key}")).and_then(Value::number);
            number.and_then(|number| u32::try_from(number).ok())
        };
        let heads = number("attention.head_count");
        let kv_heads = match header.value(&format!("{name}.attention.head_count_kv")) {
            Some(_) => number("attention.head_count_kv"),
            None => heads,
        };
        Some(Self { architecture, heads, kv_heads, experts: number("expert_count").unwrap_or(0) })
    }

    /// Whether a tensor of the file has a name in the original model.
    pub fn is_known(&self, name: &str) -> bool {
        self.named(name).is_some()
    }

    /// A tensor of the file, by its name and its first dimension. `None` if it has no name in the original model, or its rows are
    /// reordered by heads that the file does not tell of.
    pub fn of(&self, name: &str, first: u64) -> Option<Original> {
        let named = self.named(name)?;
        let names = match named.split_once(EXPERT) {
            Some(_) if !(1..=MOST_EXPERTS).contains(&first) => return None,
            Some((before, after)) => (0..first).map(|expert| format!("{before}{expert}{after}")).collect(),
            None => vec![named.clone()],
        };
        let heads = match module(name) {
            "attn_q" if self.architecture.is_turned => Some(self.heads?),
            "attn_k" if self.architecture.is_turned => Some(self.kv_heads?),
            _ => None,
        };
        let adds_one = self.architecture.adds_one && name.ends_with("norm.weight");
        Some(Original { is_of_experts: named.contains(EXPERT), names, heads, adds_one })
    }

    /// The name of a tensor, with [`EXPERT`] for the number of an expert.
    fn named(&self, name: &str) -> Option<String> {
        let (_, suffix) = name.rsplit_once('.').filter(|(_, suffix)| ["weight", "bias"].contains(suffix))?;
        let module = module(name);
        let is_llada = self.architecture.name == "llada";
        let Some(number) = block(name) else {
            let is_own = |outer: &str| outer.starts_with("transformer.") == is_llada;
            let (outer, _) = OUTER.iter().find(|(outer, called)| *called == module && is_own(outer))?;
            let before = if *outer == "lm_head" { "" } else { "model." };
            return Some(format!("{before}{outer}.{suffix}"));
        };
        let blocks = if is_llada { "model.transformer.blocks" } else { "model.layers" };
        let is_mixtral = self.architecture.name == "llama" && self.experts > 0;
        let own = if module.ends_with("_exps") {
            let experts = EXPERTS[usize::from(is_mixtral)];
            let is_own = |name: &str| name.starts_with('w') == is_mixtral;
            let (name, _) = OF_EXPERT.iter().find(|(name, called)| *called == module && is_own(name))?;
            format!("{experts}{EXPERT}.{name}")
        } else {
            let names = self.architecture.names.iter().chain(INNER);
            names
                .filter(|(_, called)| *called == module)
                .map(|(name, _)| *name)
                .find(|name| self.has(name, is_mixtral))?
                .to_string()
        };
        Some(format!("{blocks}.{number}.{own}.{suffix}"))
    }

    /// Whether the architecture has a module of this name, where several names become one in GGUF.
    fn has(&self, name: &str, is_mixtral: bool) -> bool {
        let is_fused = self.architecture.needs.contains(&"attn_qkv");
        match name {
            "mlp.up_proj" => !is_fused,
            "mlp.gate_up_proj" => is_fused,
            "mlp.gate" => !is_mixtral,
            "block_sparse_moe.gate" => is_mixtral,
            _ => true,
        }
    }
}

/// The most experts of a block.
const MOST_EXPERTS: u64 = 1 << 16;

/// What stands for the number of an expert.
const EXPERT: &str = "\0";
