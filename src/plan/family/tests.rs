use std::fs;

use super::*;
use crate::Model;
use crate::model::tests::{directory, weights};

/// A list of names in `tests/data/architectures`, and what its first line says of it.
struct Architecture {
    file: String,
    modality: Modality,
    family: String,
    sensitive: Vec<String>,
    ordinary: Option<String>,
    tensors: Vec<String>,
}

impl Architecture {
    fn all() -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/architectures");
        let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let (first, names) = text.split_once('\n').unwrap();
        let field = |key: &str| {
            let field = first.split("; ").find_map(|part| part.strip_prefix(key));
            field.unwrap_or_else(|| panic!("{}: no '{key}' in the first line", path.display())).to_string()
        };
        field("# source: ");
        Self {
            file: path.file_name().unwrap().to_string_lossy().into_owned(),
            modality: field("modality: ").parse().unwrap(),
            family: field("family: "),
            sensitive: field("sensitive: ").split(", ").map(str::to_string).collect(),
            ordinary: Some(field("ordinary: ")).filter(|name| name != "none"),
            tensors: names.lines().flat_map(expand).collect(),
        }
    }

    fn evidence(&self) -> Evidence {
        plain(ComponentEvidence { tensors: self.tensors.clone(), ..Default::default() })
    }
}

/// `a.{0..2}.b` as a.0.b, a.1.b, a.2.b; more than one range as all their pairs.
fn expand(line: &str) -> Vec<String> {
    let Some((before, (range, after))) =
        line.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![line.to_string()];
    };
    let (first, last) = range.split_once("..").unwrap();
    let numbers = first.parse::<usize>().unwrap()..=last.parse().unwrap();
    numbers.flat_map(|number| expand(&format!("{before}{number}{after}"))).collect()
}

fn plain(component: ComponentEvidence) -> Evidence {
    Evidence { path: "model".into(), components: vec![component], ..Default::default() }
}

fn component(name: &str, classes: &[&str], tensors: &[&str]) -> ComponentEvidence {
    let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
    ComponentEvidence { name: name.to_string(), classes: owned(classes), tensors: owned(tensors), modality: None }
}

fn of_classes(classes: &[&str]) -> Detected {
    detect(&plain(component("", classes, &[])))
}

fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn message(result: Result<Modality>) -> String {
    match result {
        Err(error @ QuantError::Metadata { .. }) => error.to_string(),
        other => panic!("expected a metadata error, found {other:?}"),
    }
}

#[test]
fn the_table_is_sane() {
    RULES.tensors();
    for rule in &RULES.each {
        rule.classes();
        rule.sensitive();
    }
    let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), FAMILIES.len(), "names are unique");
    for family in FAMILIES {
        assert!(!family.classes.is_empty() || !family.tensors.is_empty(), "{} can be met", family.name);
        assert!(!family.sensitive.is_empty(), "{} has sensitive tensors", family.name);
    }
}

#[test]
fn names_alone_tell_the_architecture() {
    let architectures = Architecture::all();
    assert!(architectures.len() >= 45, "the lists are there");
    for architecture in &architectures {
        let detected = detect(&architecture.evidence());
        let found = (detected.modality, detected.family("").map(|family| family.name));
        assert_eq!(found, (Some(architecture.modality), Some(&*architecture.family)), "{}", architecture.file);
        assert_eq!(detected.from, format!("tensor names ({})", architecture.family), "{}", architecture.file);
    }
}

#[test]
fn every_family_that_names_can_tell_has_a_list() {
    let listed: BTreeSet<_> = Architecture::all().into_iter().map(|architecture| architecture.family).collect();
    for family in FAMILIES.iter().filter(|family| !family.tensors.is_empty()) {
        assert!(listed.contains(family.name), "{}", family.name);
    }
}

#[test]
fn names_stay_telling_under_the_prefixes_of_checkpoints() {
    for architecture in Architecture::all() {
        // Components of a pipeline, which no checkpoint in one file has under these prefixes.
        if ["Oobleck", "HifiGan"].contains(&&*architecture.family) {
            continue;
        }
        for prefix in ["model.", "module.", "base_model.model."] {
            let tensors = architecture.tensors.iter().map(|name| format!("{prefix}{name}")).collect();
            let detected = detect(&plain(ComponentEvidence { tensors, ..Default::default() }));
            let found = detected.family("").map(|family| family.name);
            assert_eq!(found, Some(&*architecture.family), "{prefix} before {}", architecture.file);
        }
    }
}

#[test]
fn sensitive_tensors() {
    for architecture in Architecture::all() {
        let detected = detect(&architecture.evidence());
        let is_sensitive = |name: &String| detected.sensitive("", name).is_some();
        for name in &architecture.sensitive {
            assert!(architecture.tensors.contains(name), "{}: {name} is a tensor", architecture.file);
            assert!(is_sensitive(name), "{}: {name} is sensitive", architecture.file);
        }
        match &architecture.ordinary {
            Some(name) => {
                assert!(architecture.tensors.contains(name), "{}: {name} is a tensor", architecture.file);
                assert!(!is_sensitive(name), "{}: {name} is ordinary", architecture.file);
            }
            None => assert!(architecture.tensors.iter().all(is_sensitive), "{} is kept whole", architecture.file),
        }
    }
}

#[test]
fn every_sensitive_rule_is_met_by_some_list_or_example() {
    // Spellings of models whose lists are not kept.
    let examples = [
        ("Llama", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("StableDiffusion", "first_stage_model.decoder.mid.attn_1.q.weight"),
        ("StableDiffusion", "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"),
        ("Flux", "vae.decoder.conv_in.weight"),
        ("SD3", "first_stage_model.decoder.conv_in.weight"),
        ("StableAudio", "pretransform.model.decoder.layers.0.weight_v"),
        ("LLaDA", "lm_head.weight"),
        ("CLIP", "text_projection.weight"),
        ("Transformer2D", "patch_embed.proj.weight"),
        ("Transformer2D", "norm_out.linear.weight"),
        ("Transformer2D", "proj_out.weight"),
    ];
    let lists = Architecture::all();
    // Families may share their rules.
    let mut met: BTreeMap<&[&str], BTreeSet<usize>> = BTreeMap::new();
    for rule in &RULES.each {
        let listed = lists.iter().filter(|list| list.family == rule.family.name).flat_map(|list| &list.tensors);
        let given = examples.iter().filter(|(family, _)| *family == rule.family.name).map(|(_, name)| *name);
        let names = listed.map(String::as_str).chain(given);
        met.entry(rule.family.sensitive).or_default().extend(names.flat_map(|name| rule.sensitive().matches(name)));
    }
    for (rules, met) in met {
        let idle: Vec<_> = rules.iter().enumerate().filter(|(at, _)| !met.contains(at)).collect();
        assert!(idle.is_empty(), "{idle:?} match nothing");
    }
}

#[test]
fn the_rule_is_told() {
    let llama = of_classes(&["LlamaForCausalLM"]);
    assert_eq!(
        llama.sensitive("", "lm_head.weight").unwrap().to_string(),
        r"sensitive in Llama: (^|\.)(lm_head|embed_out)\."
    );
    for name in ["model.layers.0.mlp.gate.weight", "model.layers.0.mlp.shared_expert_gate.weight", "visual.proj.weight"]
    {
        assert!(llama.sensitive("", name).is_some(), "{name}");
    }
    for name in ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.experts.3.gate_proj.weight"] {
        assert!(llama.sensitive("", name).is_none(), "{name}");
    }
    assert!(llama.sensitive("text_encoder", "lm_head.weight").is_none(), "no such component");
}

#[test]
fn classes() {
    let cases: &[(&[&str], &str, Modality)] = &[
        (&["DreamModel", "Dream"], "Dream", Modality::Text),
        (&["LLaDAModelLM", "llada"], "LLaDA", Modality::Text),
        (&["MDLM", "mdlm"], "MDLM", Modality::Text),
        (&["LlamaForCausalLM", "llama"], "Llama", Modality::Text),
        (&["MixtralForCausalLM"], "Llama", Modality::Text),
        (&["Gemma3ForConditionalGeneration", "gemma3"], "Llama", Modality::Text),
        (&["Qwen2ForCausalLM", "qwen2"], "Qwen", Modality::Text),
        (&["Qwen3MoeForCausalLM"], "Qwen", Modality::Text),
        (&["Qwen2_5_VLForConditionalGeneration"], "Qwen", Modality::Text),
        (&["GPT2LMHeadModel", "gpt2"], "GPT-2", Modality::Text),
        (&["FalconForCausalLM", "falcon"], "CausalLM", Modality::Text),
        (&["SomethingNewForCausalLM"], "CausalLM", Modality::Text),
        (&["BertModel", "bert"], "BERT", Modality::Text),
        (&["XLMRobertaModel"], "BERT", Modality::Text),
        (&["T5EncoderModel"], "T5", Modality::Text),
        (&["CLIPTextModelWithProjection"], "CLIP", Modality::Text),
        (&["GPTBigCodeForCausalLM", "gpt_bigcode"], "StarCoder", Modality::Code),
        (&["Starcoder2ForCausalLM", "starcoder2"], "StarCoder2", Modality::Code),
        (&["CodeGenForCausalLM", "codegen"], "CodeGen", Modality::Code),
        (&["LlamaForCausalLM", "llama", "codellama/CodeLlama-7b-hf"], "CodeLM", Modality::Code),
        (&["LlamaForCausalLM", "llama", "deepseek-ai/deepseek-coder-6.7b-base"], "CodeLM", Modality::Code),
        (&["Qwen2ForCausalLM", "qwen2", "Qwen/CodeQwen1.5-7B"], "CodeLM", Modality::Code),
        (&["StableDiffusionPipeline"], "StableDiffusion", Modality::Image),
        (&["StableDiffusionXLPipeline"], "StableDiffusion", Modality::Image),
        (&["StableDiffusion3Pipeline"], "SD3", Modality::Image),
        (&["SD3Transformer2DModel"], "SD3", Modality::Image),
        (&["FluxTransformer2DModel"], "Flux", Modality::Image),
        (&["QwenImageTransformer2DModel"], "QwenImage", Modality::Image),
        (&["DiTTransformer2DModel", "digits-dit"], "DiT", Modality::Image),
        (&["PixArtTransformer2DModel"], "PixArt", Modality::Image),
        (&["SanaTransformer2DModel"], "Transformer2D", Modality::Image),
        (&["AudioLDM2UNet2DConditionModel"], "AudioLDM", Modality::Audio),
        (&["StableAudioDiTModel"], "StableAudio", Modality::Audio),
        (&["AutoencoderOobleck"], "Oobleck", Modality::Audio),
        (&["WhisperForConditionalGeneration", "whisper"], "Whisper", Modality::Audio),
        (&["Wav2Vec2ForCTC"], "Wav2Vec2", Modality::Audio),
        (&["VitsModel", "vits"], "VITS", Modality::Audio),
        (&["SpeechT5HifiGan"], "HifiGan", Modality::Audio),
    ];
    for (classes, family, modality) in cases {
        let detected = of_classes(classes);
        assert_eq!(detected.family("").map(|family| family.name), Some(*family), "{classes:?}");
        assert_eq!(detected.modality, Some(*modality), "{classes:?}");
        assert!(detected.from.ends_with(" in config.json"), "{}", detected.from);
    }
    // Classes match as a whole, and one of both sound and pictures does not tell.
    for class in ["NotAFluxModel", "UNet2DConditionModel", "AutoencoderKL", "WanTransformer3DModel", ""] {
        assert_eq!(of_classes(&[class]).modality, None, "{class}");
    }
}

#[test]
fn what_someone_wrote_down_comes_first() {
    let mut evidence = plain(component("", &["LlamaForCausalLM"], &[]));
    assert_eq!(detect(&evidence).from, "LlamaForCausalLM in config.json");

    evidence.metadata = metadata(&[("modality", "code"), ("modelspec.architecture", "flux-1-dev")]);
    let detected = detect(&evidence);
    assert_eq!((detected.modality, &*detected.from), (Some(Modality::Code), "`modality` in the safetensors metadata"));

    evidence.components[0].modality = Some("audio".to_string());
    let detected = detect(&evidence);
    assert_eq!((detected.modality, &*detected.from), (Some(Modality::Audio), "`modality` in config.json"));
    assert_eq!(detected.family("").unwrap().name, "Llama", "the family is what it was");
}

#[test]
fn the_architecture_in_the_metadata() {
    let cases = [
        ("modelspec.architecture", "stable-diffusion-v1", "StableDiffusion"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "StableDiffusion"),
        ("modelspec.architecture", "stable-diffusion-v3-medium", "SD3"),
        ("modelspec.architecture", "stable-diffusion-3.5-large", "SD3"),
        ("modelspec.architecture", "Flux-1-dev", "Flux"),
        ("general.architecture", "qwen2", "Qwen"),
        ("general.architecture", "sdxl", "StableDiffusion"),
        ("architecture", "DiT", "DiT"),
    ];
    for (key, value, family) in cases {
        let names = component("", &["UnknownModel"], &["transformer.h.0.attn.c_attn.weight", "transformer.wpe.weight"]);
        let detected = detect(&Evidence { metadata: metadata(&[(key, value)]), ..plain(names) });
        assert_eq!(detected.family("").map(|family| family.name), Some(family), "{value}");
        assert_eq!(detected.from, format!("`{key}` {value} in the safetensors metadata"));
    }
}

#[test]
fn a_pipeline_makes_what_its_class_says() {
    let unet = ["conv_in.weight", "time_embedding.linear_1.weight", "up_blocks.0.resnets.0.conv1.weight"];
    let vae = ["encoder.conv_in.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"];
    let mut evidence = Evidence {
        pipeline_class: Some("StableDiffusionPipeline".to_string()),
        components: vec![
            component("text_encoder", &["CLIPTextModel"], &[]),
            component("unet", &["UNet2DConditionModel"], &unet),
            component("vae", &["AutoencoderKL"], &vae),
        ],
        ..Default::default()
    };
    let detected = detect(&evidence);
    assert_eq!(detected.modality, Some(Modality::Image));
    assert_eq!(detected.from, "`_class_name` StableDiffusionPipeline in model_index.json");
    let families = ["text_encoder", "unet", "vae", ""].map(|name| detected.family(name).map(|family| family.name));
    assert_eq!(families, [Some("CLIP"), Some("StableDiffusion"), Some("VAE"), None]);
    assert!(detected.sensitive("vae", vae[1]).is_some());
    assert!(detected.sensitive("unet", unet[2]).is_none());

    // Where the class is not known its denoiser tells, never the text encoder.
    evidence.pipeline_class = Some("LatentConsistencyModelPipeline".to_string());
    assert_eq!(detect(&evidence).from, "tensor names (StableDiffusion)");
    evidence.components.remove(1);
    assert_eq!(detect(&evidence).modality, None);
}

#[test]
fn a_modality_that_is_none_is_an_error() {
    let mut evidence = plain(component("", &["LlamaForCausalLM"], &[]));
    evidence.metadata = metadata(&[("modality", "vidoe")]);
    assert_eq!(
        message(detect(&evidence).require(&evidence.path)),
        "model: modality is 'vidoe', allowed: text, code, image or audio"
    );

    let config = Path::new("model").join("config.json");
    evidence.components[0].modality = Some("Image".to_string());
    let expected = format!("{}: modality is 'Image', allowed: text, code, image or audio", config.display());
    assert_eq!(message(detect(&evidence).require(&evidence.path)), expected);
}

#[test]
fn components_that_differ_do_not_speak_for_the_pipeline() {
    let with = |name: &str, modality: &str| ComponentEvidence {
        modality: Some(modality.to_string()),
        ..component(name, &["FluxTransformer2DModel"], &[])
    };
    let components = vec![with("text_encoder", "text"), with("transformer", "audio")];
    let detected = detect(&Evidence { components, ..Default::default() });
    assert_eq!(detected.from, "FluxTransformer2DModel in transformer/config.json");
    let components = vec![with("text_encoder", "audio"), with("transformer", "audio")];
    let detected = detect(&Evidence { components, ..Default::default() });
    assert_eq!(detected.from, "`modality` in text_encoder/config.json");
}

#[test]
fn what_cannot_be_told_is_asked_for() {
    let detected = detect(&plain(component("", &["Mystery"], &["a.weight", "b.weight"])));
    assert_eq!((detected.modality, &*detected.from), (None, ""));
    assert!(detected.family("").is_none() && detected.sensitive("", "lm_head.weight").is_none());
    assert_eq!(
        detected.require(Path::new("m")).unwrap_err().to_string(),
        "m: what the model makes cannot be told from its files: give `modality` as text, code, image or audio, or write \
         `modality` into its config.json"
    );
    assert_eq!(of_classes(&["whisper"]).require(Path::new("m")).unwrap(), Modality::Audio);
}

#[test]
fn modalities_are_written_as_they_are_read() {
    for (modality, name) in Modality::ALL {
        assert_eq!(modality.to_string(), name);
        assert_eq!(name.parse::<Modality>().unwrap(), modality);
        assert_eq!(serde_json::to_string(&modality).unwrap(), format!("\"{name}\""));
        assert_eq!(serde_json::from_str::<Modality>(&format!("\"{name}\"")).unwrap(), modality);
    }
    let error = "video".parse::<Modality>().unwrap_err();
    assert!(matches!(&error, QuantError::Refused(_)));
    assert_eq!(error.to_string(), "modality is 'video', allowed: text, code, image or audio");
}

#[test]
fn our_example_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/digits-dit");
    let evidence = Evidence::of(&Model::open(&path).unwrap()).unwrap();
    assert_eq!(evidence.components[0].classes, ["DiTTransformer2DModel", "digits-dit"]);
    assert_eq!(evidence.metadata["architecture"], "DiT");
    let detected = detect(&evidence);
    assert_eq!((detected.modality, &*detected.from), (Some(Modality::Image), "`modality` in config.json"));
    assert!(detected.sensitive("", "patch_embed.weight").is_some());

    // The file by itself: what lies beside it may belong to another.
    let evidence = Evidence::of(&Model::open(&path.join("model.safetensors")).unwrap()).unwrap();
    assert_eq!(detect(&evidence).from, "`modality` in the safetensors metadata");
}

#[test]
fn a_pipeline_is_read() {
    let index = r#"{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"],
                    "text_encoder": ["transformers", "CLIPTextModel"]}"#;
    let dir = directory(&[
        ("model_index.json", index.into()),
        ("text_encoder/config.json", r#"{"architectures": ["CLIPTextModel", 7], "model_type": null}"#.into()),
        ("text_encoder/model.safetensors", weights(&[("a", &[1]), ("b", &[1])])),
        ("transformer/m.safetensors", weights(&[("x", &[1])])),
    ]);
    let evidence = Evidence::of(&Model::open(dir.path()).unwrap()).unwrap();
    assert_eq!(evidence.pipeline_class.as_deref(), Some("FluxPipeline"));
    let [text_encoder, transformer] = evidence.components.as_slice() else { panic!("{evidence:?}") };
    assert_eq!(
        (&*text_encoder.name, text_encoder.classes.as_slice()),
        ("text_encoder", ["CLIPTextModel".into()].as_slice())
    );
    assert_eq!(text_encoder.tensors, ["a", "b"]);
    assert_eq!((&*transformer.name, transformer.tensors.as_slice()), ("transformer", ["x".into()].as_slice()));
}

#[test]
fn a_broken_configuration_names_its_file() {
    for (config, said) in [("{", "EOF while parsing"), ("[]", "invalid type: sequence"), ("", "EOF")] {
        let dir = directory(&[("m.safetensors", weights(&[("w", &[1])])), ("config.json", config.into())]);
        let error = Evidence::of(&Model::open(dir.path()).unwrap()).unwrap_err();
        let message = error.to_string();
        let QuantError::Metadata { path, .. } = error else { panic!("{error:?}") };
        assert!(path.ends_with("config.json") && message.contains("config.json"), "{message}");
        assert!(message.contains(said) && message.ends_with("; expected a JSON object"), "{message}");
    }
}
