//! The architecture families that are known: plain data, tried from first to last, the special before the general.
//!
//! What counts as sensitive is what quantizers in use keep at full precision:
//!
//! - GPTQ, AWQ, bitsandbytes, torchao and llm-compressor leave `lm_head`, embeddings and MoE routers alone; llama.cpp
//!   keeps routers and position tables in F32 and gives the output matrix Q6_K. llama.cpp and MLX do quantize token
//!   embeddings, but where those are tied they are the output matrix too, which no name tells: they are kept.
//! - ComfyUI-GGUF keeps what leads into and out of a diffusion model (patches, time, text, the last layer).
//! - SDNQ keeps the same and the first block's modulation, as every later block builds on it.
//! - Autoencoders and vocoders are kept whole: ComfyUI-GGUF refuses files that hold one, SDNQ leaves convolutions alone
//!   unless asked, which is most of them, and they are small beside what they serve.
//!
//! Norms, biases and other vectors are not listed: nothing with one dimension is quantized anyway.

use super::{Family, Modality};

/// Decoders of text: heads, embeddings, routers, and the eyes of models that also see (llm-compressor's recipes).
const DECODER: &[&str] = &[
    r"(^|\.)(lm_head|embed_out)\.",
    r"(^|\.)(embed_tokens|wte|wpe|embed_in|word_embeddings)\.",
    r"(^|\.)(mlp|block_sparse_moe|feed_forward)\.(gate|router|shared_expert_gate)\.",
    r"(^|\.)(visual|vision_tower|vision_model|multi_modal_projector)\.",
];

/// U-Nets: ComfyUI-GGUF's list for SD 1 and SDXL, then what a checkpoint in one file holds besides.
const UNET: &[&str] = &[
    r"(^|\.)(time_embedding|time_embed|add_embedding|label_emb|class_embedding|film_emb)\.",
    r"(^|\.)(conv_in|conv_out|input_blocks\.0\.0|out\.2)\.",
    r"^first_stage_model\.",
    r"^(cond_stage_model|conditioner)\.[\w.]*(token|position|positional)_embedding",
];

/// Every family, the first that matches counts. Classes ignore case.
pub(crate) const FAMILIES: &[Family] = &[
    Family {
        name: "AudioLDM",
        modality: Modality::Audio,
        classes: &["(audioldm|musicldm).*"],
        // A linear class embedding has a bias: the U-Net of an image upscaler looks its classes up, without one.
        // AudioLDM 2 has none, but more than one attention a layer.
        tensors: &[
            r"(^|\.)((class_embedding|film_emb)\.bias$|up_blocks\.\d+\.attentions\.5\.)",
            r"(^|\.)(time_embedding\.linear_1|time_embed\.0)\.weight$",
            r"(^|\.)(up_blocks|output_blocks)\.\d+\.",
        ],
        sensitive: UNET,
    },
    Family {
        name: "StableAudio",
        modality: Modality::Audio,
        classes: &["stable-?audio.*"],
        tensors: &[r"(^|\.)(global_proj|to_global_embed)\.0\.", r"(^|\.)(cross_attention_proj|to_cond_embed)\.0\."],
        // SDNQ's keys, spelled as diffusers and as stable-audio-tools do; then autoencoder and conditioners.
        sensitive: &[
            r"^(time_proj|timestep_proj|global_proj|cross_attention_proj|proj_in|proj_out)\.",
            r"(^|\.)(timestep_features|to_timestep_embed|to_global_embed|to_cond_embed|project_in|project_out)\.",
            r"(^|\.)(preprocess|postprocess)_conv\.",
            r"^(pretransform|conditioner)\.",
        ],
    },
    Family {
        name: "Oobleck",
        modality: Modality::Audio,
        classes: &["autoencoderoobleck"],
        tensors: &[r"^decoder\.block\.\d+\.snake1\.alpha$"],
        sensitive: &[r"^(encoder|decoder)\."],
    },
    Family {
        name: "QwenImage",
        modality: Modality::Image,
        classes: &["qwen-?_?image.*"],
        tensors: &[r"(^|\.)transformer_blocks\.\d+\.img_mod\.1\.", r"(^|\.)txt_norm\."],
        sensitive: &[
            r"(^|\.)(img_in|txt_in|time_text_embed|norm_out)\.",
            r"^proj_out\.",
            r"(^|\.)transformer_blocks\.0\.(img|txt)_mod\.",
        ],
    },
    Family {
        name: "Flux",
        modality: Modality::Image,
        classes: &["(flux|chroma).*"],
        tensors: &[r"(^|\.)(single_transformer_blocks|single_blocks)\.\d+\.", r"(^|\.)(x_embedder|img_in)\.weight$"],
        // ComfyUI-GGUF, the same by diffusers' names, then SDNQ's first modulations.
        sensitive: &[
            r"(^|\.)(img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\.",
            r"(^|\.)(x_embedder|context_embedder|time_text_embed|norm_out)\.",
            r"^proj_out\.",
            r"(^|\.)(double_blocks\.0\.(img|txt)_mod|single_blocks\.0\.modulation)\.",
            r"(^|\.)(transformer_blocks\.0\.norm1(_context)?|single_transformer_blocks\.0\.norm)\.linear\.",
            r"^(first_stage_model|vae)\.",
        ],
    },
    Family {
        name: "SD3",
        modality: Modality::Image,
        classes: &["stable-?diffusion-?v?3.*", "sd3.*"],
        tensors: &[
            r"(^|\.)(transformer_blocks\.\d+\.attn\.add_q_proj|joint_blocks\.\d+\.x_block\.attn\.qkv)\.weight$",
            r"(^|\.)(pos_embed|x_embedder)\.proj\.weight$",
        ],
        sensitive: &[
            r"(^|\.)(x_embedder|t_embedder|y_embedder|context_embedder|time_text_embed|norm_out|final_layer)\.",
            r"(^|\.)pos_embed(\.|$)",
            r"^proj_out\.",
            r"(^|\.)(transformer_blocks\.0\.norm1(_context)?\.linear|joint_blocks\.0\.\w+\.adaLN_modulation)\.",
            r"^(first_stage_model|vae)\.",
        ],
    },
    Family {
        name: "PixArt",
        modality: Modality::Image,
        classes: &["pixart.*"],
        // LTX-Video has the same adaln_single, but no convolution over patches.
        tensors: &[r"(^|\.)adaln_single\.linear\.weight$", r"(^|\.)pos_embed\.proj\.weight$"],
        // ComfyUI-GGUF's list for LTXV, which shares these names.
        sensitive: &[
            r"(^|\.)(pos_embed|adaln_single|caption_projection)\.",
            r"(^|\.)scale_shift_table$",
            r"^proj_out\.",
        ],
    },
    Family {
        name: "DiT",
        modality: Modality::Image,
        classes: &["dit([-_].*)?", "digits-dit", "dittransformer2dmodel", "ditpipeline"],
        tensors: &[
            r"(^|\.)((y_embedder|class_embedder)\.embedding_table|label_embed)\.weight$",
            r"(^|\.)(adaLN_modulation\.1|modulation|norm1\.linear)\.weight$",
        ],
        // SDNQ, by the names of diffusers, of the first implementation, and of our example.
        sensitive: &[
            r"(^|\.)(x_embedder|t_embedder|y_embedder|timestep_embedder|class_embedder|final_layer)\.",
            r"(^|\.)(pos_embed|patch_embed|label_embed|time_fc\d|final_modulation)(\.|$)",
            r"^proj_out(_[12])?\.",
            r"(^|\.)(transformer_blocks\.0\.norm1\.linear|blocks\.0\.(adaLN_)?modulation)\.",
        ],
    },
    Family {
        name: "StableDiffusion",
        modality: Modality::Image,
        // Not UNet2DConditionModel: AudioLDM's is one too, and only the names of its tensors tell.
        classes: &["stable-?diffusion.*", "sd(1|2|xl).*"],
        tensors: &[
            r"(^|\.)(time_embedding\.linear_1|time_embed\.0)\.weight$",
            r"(^|\.)(conv_in|input_blocks\.0\.0)\.weight$",
            r"(^|\.)(up_blocks|output_blocks)\.\d+\.",
        ],
        sensitive: UNET,
    },
    Family {
        name: "VAE",
        modality: Modality::Image,
        // By names alone: sound is coded by the same class, which only the rest of a pipeline tells.
        classes: &[],
        tensors: &[r"(^|\.)encoder\.conv_in\.", r"(^|\.)decoder\.(up_blocks|up)\.\d+\."],
        sensitive: &[r"(^|\.)(encoder|decoder|quant_conv|post_quant_conv)\."],
    },
    Family {
        name: "Transformer2D",
        modality: Modality::Image,
        // Whatever else diffusers draws with: SDNQ's common keys.
        classes: &[".*transformer2dmodel"],
        tensors: &[],
        sensitive: &[
            r"(^|\.)(time_embed|context_embedder|condition_embedder|[xty]_embedder|patch_embed)\.",
            r"(^|\.)(txt_in|img_in|norm_out|final_layer)\.",
            r"^(proj_in|proj_out)\.",
        ],
    },
    Family {
        name: "Whisper",
        modality: Modality::Audio,
        classes: &["whisper.*"],
        tensors: &[r"(^|\.)encoder\.conv2\.weight$", r"(^|\.)decoder\.(layers|blocks)\.\d+\.(encoder|cross)_attn\."],
        // whisper.cpp quantizes matrices only, which leaves the convolutions, and keeps the positions in F32.
        sensitive: &[
            r"(^|\.)encoder\.conv[12]\.",
            r"(^|\.)(embed_positions|positional_embedding)(\.|$)",
            r"(^|\.)(embed_tokens|token_embedding|proj_out)\.",
        ],
    },
    Family {
        name: "Wav2Vec2",
        modality: Modality::Audio,
        classes: &["(wav2vec2|hubert|wavlm|unispeech).*"],
        tensors: &[r"(^|\.)feature_extractor\.conv_layers\.\d+\.", r"(^|\.)feature_projection\."],
        // torchaudio's examples quantize no convolution. What joins those to the encoder, and the head, are small.
        sensitive: &[
            r"(^|\.)(feature_extractor|feature_projection|pos_conv_embed|lm_head)\.",
            r"(^|\.)masked_spec_embed$",
        ],
    },
    Family {
        name: "VITS",
        modality: Modality::Audio,
        classes: &["vits.*", "piper.*"],
        tensors: &[r"(^|\.)flow\.flows\.\d+\.", r"(^|\.)(dec\.ups|decoder\.upsampler)\.\d+\."],
        // The vocoder writes the samples: see above. Then tables of symbols, speakers and relative positions.
        sensitive: &[
            r"^(model_g\.)?(dec|decoder)\.",
            r"(^|\.)(enc_p\.emb|emb_g|text_encoder\.embed_tokens|embed_speaker)\.",
            r"(^|\.)emb_rel_[kv]$",
        ],
    },
    Family {
        name: "HifiGan",
        modality: Modality::Audio,
        classes: &["(speecht5)?hifigan"],
        tensors: &[r"^conv_pre\.", r"^(upsampler|ups)\.\d+\.", r"^resblocks\.\d+\."],
        sensitive: &[r"^(conv_pre|conv_post|upsampler|ups|resblocks)\."],
    },
    Family {
        name: "MDLM",
        modality: Modality::Text,
        classes: &["(mdlm|sedd|bd3lm).*"],
        tensors: &[r"(^|\.)sigma_map\.mlp\.0\.weight$", r"(^|\.)vocab_embed\.embedding$"],
        // A DiT over tokens: embedding, noise level, last layer and first modulation, as for pictures.
        sensitive: &[r"(^|\.)(vocab_embed|sigma_map|output_layer)\.", r"(^|\.)blocks\.0\.adaLN_modulation\."],
    },
    Family {
        name: "LLaDA",
        modality: Modality::Text,
        classes: &["llada.*"],
        tensors: &[
            r"(^|\.)transformer\.blocks\.\d+\.ff_proj\.weight$",
            r"(^|\.)transformer\.blocks\.\d+\.q_proj\.weight$",
        ],
        // Its ff_out outside of the blocks is the head.
        sensitive: &[r"(^|\.)transformer\.(wte|ff_out)\.", r"(^|\.)lm_head\."],
    },
    Family {
        name: "Dream",
        modality: Modality::Text,
        // Its tensors are named as Qwen's.
        classes: &["dream(model)?"],
        tensors: &[],
        sensitive: DECODER,
    },
    Family {
        name: "StarCoder2",
        modality: Modality::Code,
        classes: &["starcoder2.*"],
        tensors: &[r"(^|\.)layers\.\d+\.mlp\.c_fc\.weight$", r"(^|\.)layers\.\d+\.self_attn\.q_proj\.weight$"],
        sensitive: DECODER,
    },
    Family {
        name: "CodeGen",
        modality: Modality::Code,
        classes: &["codegen.*"],
        tensors: &[r"(^|\.)h\.\d+\.attn\.qkv_proj\.weight$", r"(^|\.)h\.\d+\.mlp\.fc_in\.weight$"],
        sensitive: DECODER,
    },
    Family {
        name: "StarCoder",
        modality: Modality::Code,
        // Its tensors are named as GPT-2's.
        classes: &["gpt_?bigcode.*", "starcoder"],
        tensors: &[],
        sensitive: DECODER,
    },
    Family {
        name: "CodeLM",
        modality: Modality::Code,
        // Text models that were trained on code: the class is the text model's, only `_name_or_path` tells.
        classes: &[".*(code-?llama|code-?qwen|codegemma|codestral|stable-code|starcoder|-coder).*"],
        tensors: &[],
        sensitive: DECODER,
    },
    Family {
        name: "Qwen",
        modality: Modality::Text,
        classes: &["qwen.*"],
        tensors: &[
            r"(^|\.)layers\.\d+\.self_attn\.(q_proj\.bias|q_norm\.weight)$",
            r"(^|\.)layers\.\d+\.mlp\.(gate_proj|gate)\.weight$",
            r"(^|\.)layers\.\d+\.input_layernorm\.weight$",
        ],
        sensitive: DECODER,
    },
    Family {
        name: "Llama",
        modality: Modality::Text,
        classes: &["(llama|mistral|mixtral|gemma|phi|deepseek|olmo|smollm|granite).*"],
        tensors: &[
            r"(^|\.)layers\.\d+\.self_attn\.(q|qkv|q_a)_proj\.weight$",
            r"\.(gate_proj|gate_up_proj|block_sparse_moe\.gate)\.weight$",
            r"(^|\.)embed_tokens\.weight$",
        ],
        sensitive: DECODER,
    },
    Family {
        name: "T5",
        modality: Modality::Text,
        classes: &["(t5|mt5|umt5).*"],
        tensors: &[r"(^|\.)encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight$"],
        sensitive: &[r"(^|\.)(shared|embed_tokens|relative_attention_bias|lm_head)\."],
    },
    Family {
        name: "CLIP",
        modality: Modality::Text,
        classes: &["clip.*"],
        tensors: &[r"(^|\.)text_model\.encoder\.layers\.\d+\.self_attn\.q_proj\.weight$"],
        sensitive: &[r"(^|\.)(token|position|patch)_embedding\.", r"(^|\.)(text|visual)_projection\."],
    },
    Family {
        name: "BERT",
        modality: Modality::Text,
        classes: &["(distil|modern|nomic_?|de|al|camem)?bert.*", "(xlm[-_]?)?roberta.*", "(mpnet|electra).*"],
        tensors: &[
            r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query\.weight$",
            r"(^|\.)embeddings\.word_embeddings\.weight$",
        ],
        // bitsandbytes converts no table and no head.
        sensitive: &[r"(^|\.)(word|position|token_type)_embeddings\.", r"^(cls|classifier|lm_head|qa_outputs)\."],
    },
    Family {
        name: "GPT-2",
        modality: Modality::Text,
        classes: &["gpt2.*"],
        tensors: &[r"(^|\.)h\.\d+\.attn\.c_attn\.weight$", r"(^|\.)wpe\.weight$"],
        sensitive: DECODER,
    },
    Family {
        name: "CausalLM",
        modality: Modality::Text,
        classes: &[".*(forcausallm|lmheadmodel)", "(gpt_?neox|gpt_?j|falcon|bloom|mpt|opt).*"],
        tensors: &[
            r"(^|\.)(lm_head|embed_out)\.weight$",
            r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$",
        ],
        sensitive: DECODER,
    },
];
