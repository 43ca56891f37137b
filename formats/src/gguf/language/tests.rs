use serde_json::{Value as Json, json};

use super::*;
use crate::gguf::Array;
use crate::gguf::{Holds, Rows};

/// The configuration of a llama of two blocks, with these keys changed; null takes one away.
fn config(changes: Json) -> Json {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "vocab_size": 6,
        "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": false,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

fn split(expression: &str) -> Json {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    ]})
}

fn tokenizer() -> Json {
    json!({
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": true, "normalized": false},
            {"id": 1, "content": "</s>", "special": true, "normalized": false},
            {"id": 4, "content": "a\u{2581}tool", "special": false, "normalized": true},
        ],
        "pre_tokenizer": split(LLAMA3),
        "decoder": {"type": "ByteLevel"},
        "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}]},
        "model": {"type": "BPE", "ignore_merges": true, "vocab": {"<s>": 0, "</s>": 1, "a": 2, "ab": 3},
            "merges": [["a", "b"], ["a c", "d"]]},
    })
}

/// The files of a model with a tokenizer of bytes.
fn files(config: &Json, tokenizer: &Json) -> Files {
    let settings = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages }}"});
    Files::from([
        (CONFIG, config.to_string().into_bytes()),
        ("tokenizer.json", tokenizer.to_string().into_bytes()),
        ("tokenizer_config.json", settings.to_string().into_bytes()),
    ])
}

/// The tensors of the llama: names and shapes.
fn tensors() -> Vec<(String, Vec<i64>)> {
    let mut tensors = vec![
        ("lm_head.weight".to_string(), vec![6, 8]),
        ("model.embed_tokens.weight".to_string(), vec![6, 8]),
        ("model.norm.weight".to_string(), vec![8]),
    ];
    for block in 0..2 {
        let shapes: [(&str, &[i64]); 9] = [
            ("input_layernorm", &[8]),
            ("self_attn.q_proj", &[8, 8]),
            ("self_attn.k_proj", &[4, 8]),
            ("self_attn.v_proj", &[4, 8]),
            ("self_attn.o_proj", &[8, 8]),
            ("post_attention_layernorm", &[8]),
            ("mlp.gate_proj", &[16, 8]),
            ("mlp.up_proj", &[16, 8]),
            ("mlp.down_proj", &[8, 16]),
        ];
        let of_block =
            |(module, shape): (&str, &[i64])| (format!("model.layers.{block}.{module}.weight"), shape.to_vec());
        tensors.extend(shapes.map(of_block));
    }
    tensors
}

fn model(files: &Files, tensors: &[(String, Vec<i64>)], asked: Asked<'_>) -> Result<LanguageModel, LanguageError> {
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| SourceTensor { name, shape, same_as: None }).collect();
    LanguageModel::new(files, &tensors, asked)
}

fn llama(changes: Json) -> Result<LanguageModel, LanguageError> {
    model(&files(&config(changes), &tokenizer()), &tensors(), Asked::default())
}

fn value<'a>(model: &'a LanguageModel, key: &str) -> Option<&'a Value> {
    model.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

#[test]
fn a_llama_has_the_keys_of_one() {
    let model = llama(json!({})).unwrap();
    let expected: [(&str, Value); 18] = [
        ("general.architecture", "llama".into()),
        ("llama.context_length", 64_u32.into()),
        ("llama.embedding_length", 8_u32.into()),
        ("llama.block_count", 2_u32.into()),
        ("llama.feed_forward_length", 16_u32.into()),
        ("llama.attention.head_count", 2_u32.into()),
        ("llama.attention.head_count_kv", 1_u32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5_f32.into()),
        ("llama.vocab_size", 6_u32.into()),
        ("llama.rope.dimension_count", 4_u32.into()),
        ("llama.rope.freq_base", 5e5_f32.into()),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "llama-bpe".into()),
        ("tokenizer.ggml.bos_token_id", 0_u32.into()),
        ("tokenizer.ggml.eos_token_id", 1_u32.into()),
        ("tokenizer.ggml.add_bos_token", true.into()),
        ("tokenizer.ggml.token_type", vec![3_i32, 3, 1, 1, 4, 5].into()),
        ("tokenizer.chat_template", "{{ messages }}".into()),
    ];
    for (key, expected) in expected {
        assert_eq!(value(&model, key), Some(&expected), "{key}");
    }
    let texts = |texts: &[&str]| Value::Array(Array::Text(texts.iter().map(ToString::to_string).collect()));
    let tokens = texts(&["<s>", "</s>", "a", "ab", "a tool", "[PAD5]"]);
    assert_eq!(value(&model, "tokenizer.ggml.tokens"), Some(&tokens));
    assert_eq!(value(&model, "tokenizer.ggml.merges"), Some(&texts(&["a b", "a\u{120}c d"])));
    assert_eq!((model.blocks, model.heads_of_key, model.is_tied()), (2, 2, false));
}

#[test]
fn tensors_of_a_llama_have_names_and_order_of_one() {
    let model = llama(json!({})).unwrap();
    let names: Vec<_> = model.places.iter().map(|place| place.name.as_str()).collect();
    assert_eq!(names[..4], ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"]);
    assert_eq!(names.len(), 21);
    let place = |name: &str| model.places.iter().find(|place| place.name == name).unwrap();
    assert_eq!(place("blk.1.attn_q.weight").rows, Rows::Turned { heads: 2 });
    assert_eq!(place("blk.1.attn_k.weight").rows, Rows::Turned { heads: 1 });
    assert_eq!(place("blk.1.attn_v.weight").rows, Rows::AsTheyAre);
    assert_eq!([place("blk.1.ffn_norm.weight").holds, place("blk.1.ffn_up.weight").holds], [Holds::F32, Holds::Blocks]);
}

#[test]
fn a_tied_head_is_left_out() {
    let tied = llama(json!({"tie_word_embeddings": true})).unwrap();
    assert_eq!(tied.left_out, [(0, Omission::Tied)]);
    assert!(tied.is_tied());
    let all = tensors();
    let mut equal: Vec<_> = all.iter().map(|(name, shape)| SourceTensor { name, shape, same_as: None }).collect();
    equal[1].same_as = Some(0);
    let model = LanguageModel::new(&files(&config(json!({})), &tokenizer()), &equal, Asked::default()).unwrap();
    assert_eq!(model.left_out, [(0, Omission::Tied)]);
}

#[test]
fn what_a_loader_does_not_take_is_left_out() {
    let mut all = tensors();
    all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), vec![2]));
    all.push(("vision_tower.patch.weight".to_string(), vec![2, 2]));
    all.push(("model.layers.2.eh_proj.weight".to_string(), vec![8, 16]));
    let left_out = model(&files(&config(json!({})), &tokenizer()), &all, Asked::default()).unwrap().left_out;
    let expected = [(21, Omission::Computed), (22, Omission::OtherPart), (23, Omission::OtherPart)];
    assert_eq!(left_out, expected);
}

#[test]
fn positions_that_are_scaled_are_told() {
    let rope = json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let scaled = llama(json!({"rope_parameters": rope})).unwrap();
    assert_eq!(scaled.extra.len(), 1);
    assert_eq!(scaled.extra[0].name, "rope_freqs.weight");
    // Wavelengths of 2π and 2π·100: the first is short, the second longer than 64.
    assert_eq!(scaled.extra[0].values, [1.0, 8.0]);
    let old = json!({"rope_parameters": null, "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}});
    let linear = llama(old).unwrap();
    assert_eq!(value(&linear, "llama.rope.scaling.type"), Some(&"linear".into()));
    assert_eq!(value(&linear, "llama.rope.freq_base"), Some(&Value::F32(1e6)));
    let other = json!({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}});
    let message = llama(other).unwrap_err().to_string();
    assert_eq!(message, "config.json: rotary positions are scaled by 'longrope', which GGUF does not have for llama");
}

#[test]
fn experts_are_stacked() {
    let changes = json!({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 4, "head_dim": 4});
    let mut all: Vec<_> = tensors().into_iter().filter(|(name, _)| !name.contains("mlp.")).collect();
    let first = all.len();
    for block in 0..2 {
        all.push((format!("model.layers.{block}.mlp.gate.weight"), vec![2, 8]));
        for expert in [1, 0] {
            for (module, shape) in [("gate_proj", [4, 8]), ("up_proj", [4, 8]), ("down_proj", [8, 4])] {
                all.push((format!("model.layers.{block}.mlp.experts.{expert}.{module}.weight"), shape.to_vec()));
            }
        }
    }
    let files = files(&config(changes), &tokenizer());
    let moe = model(&files, &all, Asked::default()).unwrap();
    let place = |name: &str| moe.places.iter().find(|place| place.name == name).unwrap();
    let down = place("blk.0.ffn_down_exps.weight");
    assert_eq!((down.shape.as_slice(), down.sources.as_slice()), (&[2, 8, 4][..], &[first + 6, first + 3][..]));
    assert_eq!(place("blk.1.ffn_gate_inp.weight").holds, Holds::F32);
    assert_eq!(value(&moe, "qwen3moe.expert_count"), Some(&Value::U32(2)));
    assert_eq!(value(&moe, "qwen3moe.attention.key_length"), Some(&Value::U32(4)));
    all.pop();
    let message = model(&files, &all, Asked::default()).unwrap_err().to_string();
    assert!(message.contains("needs 2 experts of blk.1.ffn_down_exps.weight"), "{message}");
}

#[test]
fn what_would_not_load_is_refused() {
    let message = |changes: Json| llama(changes).unwrap_err().to_string();
    assert!(
        message(json!({"architectures": ["BertModel"]}))
            .contains("the architecture BertModel, known for GGUF: llama, qwen2")
    );
    assert!(message(json!({"architectures": null, "model_type": "x"})).contains("of the model_type x"));
    assert!(
        message(json!({"hidden_size": null})).contains("`hidden_size` is not there, expected a whole number above 0")
    );
    assert!(message(json!({"num_hidden_layers": -2})).contains("`num_hidden_layers` is -2"));
    assert!(message(json!({"rms_norm_eps": "x"})).contains(r#"`rms_norm_eps` is "x", expected a number"#));
    assert!(message(json!({"num_hidden_layers": 3})).contains("needs blk.2.attn_norm.weight"));
    assert!(
        message(json!({"num_attention_heads": 4, "num_key_value_heads": 4})).contains("expected 8 rows by config.json")
    );
    let of = |files: &Files, asked| model(files, &tensors(), asked).unwrap_err().to_string();
    let mut some = files(&config(json!({})), &tokenizer());
    let asked = Asked { architecture: Some("bert"), pre_tokenizer: None };
    assert!(of(&some, asked).starts_with("there is no architecture 'bert', allowed: llama"));
    let asked = Asked { architecture: None, pre_tokenizer: Some("qwen") };
    assert!(of(&some, asked).starts_with("there is no pre-tokenizer 'qwen', allowed: default"));
    let mut other = tensors();
    other.push(("model.layers.0.self_attn.q_proj.lora_A.weight".to_string(), vec![2, 8]));
    let found = model(&some, &other, Asked::default()).unwrap_err().to_string();
    assert!(found.contains("lora_A.weight' has no place in a GGUF file of llama"), "{found}");
    some.insert("tokenizer.json", b"{".to_vec());
    assert!(of(&some, Asked::default()).starts_with("tokenizer.json: EOF"));
    some.insert(
        "tokenizer.json",
        json!({"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}).to_string().into_bytes(),
    );
    assert!(of(&some, Asked::default()).contains("of the kind 'Unigram', which is not written to GGUF"));
    some.remove("tokenizer.json");
    assert!(of(&some, Asked::default()).contains("there is no tokenizer.json or tokenizer.model"));
    some.insert("tokenizer.model", b"something else".to_vec());
    assert!(of(&some, Asked::default()).contains("tokenizer.model: not a model of SentencePiece"));
    some.remove(CONFIG);
    assert!(of(&some, Asked::default()).contains("there is no config.json beside the weights"));
}

#[test]
fn ways_to_cut_text_are_recognized() {
    let pre = |pre_tokenizer: Json, ignores_merges: bool| {
        let mut tokenizer = tokenizer();
        tokenizer["pre_tokenizer"] = pre_tokenizer;
        tokenizer["model"]["ignore_merges"] = ignores_merges.into();
        let model = model(&files(&config(json!({})), &tokenizer), &tensors(), Asked::default())?;
        Ok::<_, LanguageError>(value(&model, "tokenizer.ggml.pre").cloned().unwrap())
    };
    assert_eq!(pre(split(LLAMA3), true), Ok("llama-bpe".into()));
    assert_eq!(pre(split(LLAMA3), false), Ok("dbrx".into()));
    assert_eq!(pre(split(&LLAMA3.replace("{1,3}", "")), false), Ok("qwen2".into()));
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    assert_eq!(pre(gpt2.clone(), false), Ok("gpt-2".into()));
    let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, gpt2]});
    assert_eq!(pre(digits, false), Ok("smollm".into()));
    let tekken = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    assert_eq!(pre(split(tekken), false), Ok("tekken".into()));
    let message = pre(split("\\w+"), false).unwrap_err().to_string();
    assert_eq!(message, "tokenizer.json cuts text in a way that is not known: split by \\w+, then bytes");
    let asked = Asked { architecture: None, pre_tokenizer: Some("qwen2") };
    let mut tokenizer = tokenizer();
    tokenizer["pre_tokenizer"] = split("\\w+");
    let model = model(&files(&config(json!({})), &tokenizer), &tensors(), asked).unwrap();
    assert_eq!(value(&model, "tokenizer.ggml.pre"), Some(&"qwen2".into()));
}

#[test]
fn more_tokens_than_rows_are_refused() {
    let mut tokenizer = tokenizer();
    tokenizer["model"]["vocab"]["abc"] = 6.into();
    let message = model(&files(&config(json!({})), &tokenizer), &tensors(), Asked::default()).unwrap_err().to_string();
    assert_eq!(message, "the tokenizer has the token 6, and model.embed_tokens.weight has 6 rows");
}

/// A field of a protocol buffer whose value is bytes.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
    bytes_field(1, &[bytes_field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
}

#[test]
fn pieces_of_sentencepiece_are_read() {
    let normalizer = bytes_field(3, &[3 << 3, 0]);
    let pieces = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("<0x41>", 0.0, 6), piece("\u{2581}a", -0.5, 1)];
    let mut files = files(&config(json!({})), &tokenizer());
    files.remove("tokenizer.json");
    files.insert("added_tokens.json", json!({"<tool>": 4}).to_string().into_bytes());
    files.insert("tokenizer.model", [pieces.concat(), normalizer].concat());
    let spm = model(&files, &tensors(), Asked::default()).unwrap();
    assert_eq!(value(&spm, "tokenizer.ggml.model"), Some(&"llama".into()));
    assert_eq!(value(&spm, "tokenizer.ggml.add_space_prefix"), Some(&false.into()));
    assert_eq!(value(&spm, "tokenizer.ggml.token_type"), Some(&vec![2_i32, 3, 6, 1, 4, 5].into()));
    let scores = vec![0.0_f32, 0.0, 0.0, -0.5, -1000.0, -10000.0];
    assert_eq!(value(&spm, "tokenizer.ggml.scores"), Some(&scores.into()));
    // The numbers of config.json, as no tokenizer.json has those of texts.
    assert_eq!(value(&spm, "tokenizer.ggml.eos_token_id"), Some(&Value::U32(1)));
    // No damage panics.
    let whole = files["tokenizer.model"].clone();
    for at in 0..whole.len() {
        for byte in [0, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            files.insert("tokenizer.model", damaged);
            let _ = model(&files, &tensors(), Asked::default());
        }
    }
}

#[test]
fn pieces_are_ranked_by_merges() {
    let tokenizer = json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "\u{2581}a": 3, "\u{2581}": 4, "a": 5},
            "merges": ["\u{2581} a"]},
    });
    let spm = model(&files(&config(json!({})), &tokenizer), &tensors(), Asked::default()).unwrap();
    assert_eq!(value(&spm, "tokenizer.ggml.model"), Some(&"llama".into()));
    assert_eq!(value(&spm, "tokenizer.ggml.token_type"), Some(&vec![3_i32, 3, 6, 1, 1, 1].into()));
    let Some(Value::Array(Array::F32(scores))) = value(&spm, "tokenizer.ggml.scores") else { panic!("no scores") };
    assert_eq!(scores[3..], [0.0, -1.0, -1.0]);
    assert_eq!(value(&spm, "tokenizer.ggml.add_space_prefix"), Some(&true.into()));
}
