use serde_json::json;

use super::stacks::{blocks, split_column};
use super::*;
use crate::{Reason, Totals};

fn tensor(name: &str, bits: Option<u8>, db: Option<f64>) -> TensorReport {
    TensorReport {
        component: String::new(),
        tensor: name.into(),
        dtype: "BF16".into(),
        shape: vec![64, 128],
        elements: 8192,
        bits,
        group_size: bits.map(|_| 128),
        encoding: bits.map_or("BF16".into(), |bits| format!("int{bits}")),
        because: if bits.is_some() { Reason::BitWidth } else { Reason::Dimensions { dimensions: 1 } }.into(),
        fallbacks: vec![],
        same_as: None,
        bytes: bits.map_or(16384, |bits| 1024 * u64::from(bits)),
        cosine_similarity: bits.map(|_| 0.996),
        sqnr_db: db,
        max_abs_error: bits.map(|_| 0.01),
    }
}

fn report(tensors: Vec<TensorReport>) -> ModelReport {
    let quantized = tensors.iter().any(|tensor| tensor.bits.is_some());
    ModelReport {
        name: "a model".into(),
        source_files: vec![],
        created_by: "arrow-quant".into(),
        settings: [("bit_width".to_string(), json!(4))].into_iter().collect(),
        modality: None,
        notes: vec![],
        time_aware: false,
        reason: None,
        layers: vec![],
        totals: Totals {
            weights: tensors.iter().map(|tensor| tensor.elements).sum(),
            original_bytes: 1000,
            stored_bytes: 250,
            bits_per_weight: 4.0,
            compression_ratio: 4.0,
            cosine_similarity: quantized.then_some(0.996),
            sqnr_db: quantized.then_some(20.5),
            squared_error: 1.0,
        },
        tensors,
    }
}

fn layer(tensor: &str, worst_db: f64) -> LayerReport {
    LayerReport {
        tensor: tensor.into(),
        state: String::new(),
        channels: 128,
        timesteps: 25,
        time_groups: 6,
        smoothing_alpha: None,
        activation_sqnr_db: worst_db + 1.25,
        worst_activation_sqnr_db: worst_db,
        clipping_gain_db: 2.5,
        time_groups_gain_db: 4.75,
        worst_time_groups_gain_db: 3.125,
        smoothing_gain_db: 0.0,
        importance_gain_db: Some(0.375),
    }
}

/// Every `{n}` of a name stands for the numbers below the one given.
fn model(names: &[&str], count: usize) -> Vec<TensorReport> {
    let names = names.iter().flat_map(|name| match name.contains("{n}") {
        true => (0..count).map(|n| name.replace("{n}", &n.to_string())).collect(),
        false => vec![name.to_string()],
    });
    names.map(|name| tensor(&name, Some(4), Some(20.5))).collect()
}

/// Of every grid its columns and its stacks with their rows; and the names outside of them.
fn found(tensors: &[TensorReport]) -> (Vec<String>, Vec<&str>) {
    let blocks = blocks(&tensors.iter().collect::<Vec<_>>());
    let grids = blocks.grids.iter().map(|grid| {
        let stacks = grid.stacks.iter().map(|stack| {
            let rows: Vec<&str> = stack.rows.iter().map(|row| row.label.as_str()).collect();
            format!("{} {}", stack.pattern, rows.join(","))
        });
        format!("{} | {}", stacks.collect::<Vec<_>>().join("; "), grid.columns.join(" "))
    });
    (grids.collect(), blocks.rest.iter().map(|tensor| tensor.tensor.as_str()).collect())
}

#[test]
fn names_are_escaped() {
    let mut hostile = tensor("<script>alert(1)</script>", Some(4), Some(9.0));
    hostile.component = "</td><b>".into();
    hostile.because = Reason::LayerBitWidths { layer: "<img onerror=x>".into() }.into();
    let mut report = report(vec![hostile]);
    report.name = "</title><script>".into();
    report.notes = vec!["<i>".into()];
    report.settings.insert("<u>".into(), json!({ "<s>": ["<em>"] }));
    let page = html(&report);
    assert_eq!(page.matches("<script").count(), 1, "the one that sorts tables");
    for tag in ["<script>alert", "</td><b>", "<img", "<i>", "<u>", "<s>", "<em>"] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
}

#[test]
fn nothing_is_loaded() {
    let page =
        html(&report(model(&["model.layers.{n}.mlp.up_proj.weight", "model.layers.{n}.mlp.down_proj.weight"], 4)));
    for reference in ["src=", "@import", "url(", "<link", "http://", "https://", "@font-face"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn the_policy_allows_the_script_that_sorts_and_no_other() {
    use base64::Engine;
    use sha2::Digest;

    let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(SORT));
    assert!(POLICY.ends_with(&format!("script-src 'sha256-{hash}'")), "sort.js has changed: its hash is sha256-{hash}");
    assert!(html(&report(vec![])).contains(&format!("<script>{SORT}</script>")));
}

#[test]
fn the_page_says_the_command_the_target_and_what_was_reached() {
    let mut report = report(model(&["h.{n}.weight"], 2));
    report.name = "my model".into();
    let settings = json!({
        "deployment_profile": "edge", "bit_width": 4, "group_size": 256, "target_bpw": 4.2, "min_accuracy": 0.65,
        "fail_fast": true, "sensitive_layer_names": ["a", "b"], "layer_bit_widths": {"h.0": 8}, "tensors": null,
    });
    report.settings = settings.as_object().unwrap().clone();
    let page = html(&report);
    for text in [
        "arrow-quant quantize 'my model' OUT --profile edge --bits 4 --fail-fast=true --sensitive-layer-names a,b \
         --layer-bit-widths h.0=8 --target-bpw 4.2<",
        "4.2 bits per weight, reached 4.000",
        "cosine similarity 0.65, lowest 0.996000 of ",
        "each 6 dB more halves them",
    ] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn what_was_lost_comes_before_what_it_was_stored_as() {
    let page = html(&report(model(&["h.{n}.weight"], 2)));
    let headings = ["Tensor</th>", "SQNR dB</th>", "Cosine</th>", "Max error</th>", "Bits</th>", "Shape</th>"];
    let places: Vec<_> = headings.iter().map(|heading| page.find(heading).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn every_section_is_present() {
    let mut tensors = model(&["h.{n}.attn.c_attn.weight", "h.{n}.mlp.c_fc.weight", "wte.weight"], 3);
    tensors[1].fallbacks = vec![Attempt {
        encoding: "int2".into(),
        bits: 2,
        group_size: Some(64),
        cosine_similarity: Some(0.91),
        sqnr_db: Some(7.25),
    }];
    tensors.push(tensor("ln_f.weight", None, None));
    tensors.push(TensorReport { same_as: Some("wte.weight".into()), bytes: 0, ..tensor("lm_head.weight", None, None) });
    let mut report = report(tensors);
    report.notes = vec!["a note".into()];
    let page = html(&report);
    for text in [
        "<title>a model",
        "<h1>a model",
        "Quality by block",
        "Bit widths",
        "Tensors by SQNR",
        "Lowest SQNR",
        "Decisions",
        "How bits were chosen",
        "Fallbacks",
        "7.25 dB",
        "Kept at their own dtype",
        "Tied",
        "a note",
        "Settings",
        "All tensors",
        "9 tensors",
        "c_attn",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page, html(&report), "the same report gives the same bytes");
    for section in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(page.contains(&format!("id=\"{section}\"")), "{section}");
    }
}

/// The cells of the row of a layer.
fn cells(page: &str, tensor: &str) -> Vec<String> {
    let (_, row) = page.split_once(&format!("<code>{tensor}</code></th>")).unwrap();
    let (row, _) = row.split_once("</tr>").unwrap();
    let cells = row.split("</td>").filter_map(|cell| Some(cell.rsplit_once('>')?.1.to_string()));
    cells.collect()
}

#[test]
fn layers_of_a_calibration() {
    let mut calibrated = report(vec![tensor("w", Some(4), Some(9.0))]);
    calibrated.time_aware = true;
    calibrated.layers = vec![layer("first", 40.0), layer("worst", 30.0), layer("middle", 35.0)];
    calibrated.layers[1].smoothing_alpha = Some(0.25);
    calibrated.layers[1].smoothing_gain_db = 1.5;
    calibrated.layers[2].importance_gain_db = None;
    let page = html(&calibrated);
    assert!(page.contains("href=\"#layers\"") && page.contains("id=\"layers\""));
    assert!(page.contains(">Time-aware: 18 time groups in 3 layers</p>"));
    let (_, section) = page.split_once("id=\"layers\"").unwrap();
    let place = |name: &str| section.find(&format!("<code>{name}</code>")).unwrap();
    assert!(place("worst") < place("middle") && place("middle") < place("first"));
    let expected = ["128", "25", "6", "0.25", "31.25", "30.00", "2.50", "4.75", "3.12", "1.50", "0.38"];
    assert_eq!(cells(section, "worst"), expected);
    let expected = ["128", "25", "6", "–", "36.25", "35.00", "2.50", "4.75", "3.12", "–", "–"];
    assert_eq!(cells(section, "middle"), expected);
    assert!(!page.contains("State"), "there are none");

    // With states there is a column of them.
    calibrated.layers[0].state = "<masked>".into();
    let page = html(&calibrated);
    let (_, section) = page.split_once("id=\"layers\"").unwrap();
    assert_eq!(cells(section, "first")[..2], ["&lt;masked&gt;", "128"]);
    assert_eq!(cells(section, "worst")[..2], ["–", "128"]);
    let headings = section.split_once("</thead>").unwrap().0.matches("scope=\"col\"").count();
    assert_eq!(headings, 1 + cells(section, "worst").len());
}

#[test]
fn models_that_are_not_time_aware_say_why() {
    let mut plain = report(vec![tensor("w", Some(4), Some(9.0))]);
    plain.reason = Some("no calibration".into());
    let page = html(&plain);
    assert!(page.contains(">Not time-aware: no calibration</p>"));
    assert!(!page.contains("layers"), "there is no section, nor a reference to it");
    plain.reason = Some("enable_time_aware is false".into());
    plain.layers = vec![layer("w", 30.0)];
    let page = html(&plain);
    assert!(page.contains(">Not time-aware: enable_time_aware is false</p>") && page.contains("id=\"layers\""));
    // Of a directory that an earlier version wrote, there is nothing to say.
    plain.reason = None;
    assert!(!html(&plain).contains("ime-aware"));
}

#[test]
fn empty_and_kept_models() {
    let mut empty = report(vec![]);
    (empty.totals.bits_per_weight, empty.totals.stored_bytes) = (f64::NAN, 0);
    assert!(html(&empty).contains("The model has no tensors."));
    let kept = html(&report(vec![tensor("a.weight", None, None), tensor("b.weight", None, None)]));
    assert!(kept.contains("No tensor lost anything.") && kept.contains("class=\"cell kept\""));
    assert!(!html(&empty).contains("NaN") && !kept.contains("NaN"));
}

#[test]
fn figures_that_are_no_numbers() {
    let lossless = |db| TensorReport { max_abs_error: Some(0.0), ..tensor("zeros", Some(4), db) };
    for tensor in [lossless(None), lossless(Some(f64::INFINITY))] {
        assert!(html(&report(vec![tensor])).contains(r#"<span class="cell exact""#));
    }
    let lost = tensor("lost", Some(4), Some(f64::NEG_INFINITY));
    assert!(!html(&report(vec![lost])).contains("<td class=\"n\">exact"));
}

#[test]
fn stacks_of_plain_models() {
    let llama = [
        "model.embed_tokens.weight",
        "model.layers.{n}.self_attn.q_proj.weight",
        "model.layers.{n}.mlp.up_proj.weight",
    ];
    let grid = "model.layers.* 0,1,2,3,4,5,6,7,8,9,10,11 | self_attn.q_proj mlp.up_proj".to_string();
    assert_eq!(found(&model(&llama, 12)), (vec![grid], vec!["model.embed_tokens.weight"]));
    let flax = ["params/layer_{n}/attention/kernel", "params/layer_{n}/mlp/kernel"];
    assert_eq!(found(&model(&flax, 2)).0, ["params/layer_* 0,1 | attention/kernel mlp/kernel"]);
    let t5 = [
        "encoder.block.{n}.layer.0.SelfAttention.q.weight",
        "encoder.block.{n}.layer.0.SelfAttention.o.weight",
        "encoder.block.{n}.layer.1.DenseReluDense.wi_0.weight",
        "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight",
    ];
    let grid = "encoder.block.* 0,1 | layer.0.SelfAttention.q layer.0.SelfAttention.o \
                layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1";
    assert_eq!(found(&model(&t5, 2)).0, [grid]);
    let sequence = ["0.weight", "2.weight", "4.weight"];
    assert_eq!(found(&model(&sequence, 1)), (vec![], sequence.to_vec()));
}

#[test]
fn stacks_of_diffusion_transformers() {
    let names = [
        "transformer_blocks.{n}.attn.to_q.weight",
        "transformer_blocks.{n}.attn.to_out.0.weight",
        "transformer_blocks.{n}.ff.net.0.proj.weight",
        "transformer_blocks.{n}.ff.net.2.weight",
        "single_transformer_blocks.{n}.attn.to_q.weight",
        "single_transformer_blocks.{n}.proj_mlp.weight",
        "proj_out.weight",
    ];
    let grids = [
        "transformer_blocks.* 0,1,2 | attn.to_q attn.to_out.0 ff.net.0.proj ff.net.2",
        "single_transformer_blocks.* 0,1,2 | attn.to_q proj_mlp",
    ];
    assert_eq!(found(&model(&names, 3)), (grids.map(String::from).to_vec(), vec!["proj_out.weight"]));
}

#[test]
fn stacks_of_a_unet() {
    let mut names = vec![];
    for block in ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"] {
        for layer in 0..if block == "mid_block" { 1 } else { 2 } {
            for module in ["proj_in", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"] {
                names.push(format!("{block}.attentions.{layer}.{module}.weight"));
            }
            names.extend(["conv1", "conv2"].map(|conv| format!("{block}.resnets.{layer}.{conv}.weight")));
        }
    }
    names.extend(["down_blocks.0.downsamplers.0.conv.weight".to_string(), "conv_in.weight".to_string()]);
    let (grids, rest) = found_names(&names);
    let attentions = "down_blocks.*.attentions.* 0.0,0.1,1.0,1.1; mid_block.attentions.* 0; \
                      up_blocks.*.attentions.* 0.0,0.1,1.0,1.1 \
                      | proj_in transformer_blocks.0.attn1.to_q transformer_blocks.0.ff.net.2";
    let resnets = "down_blocks.*.resnets.* 0.0,0.1,1.0,1.1; mid_block.resnets.* 0; \
                   up_blocks.*.resnets.* 0.0,0.1,1.0,1.1 | conv1 conv2";
    assert_eq!(grids, [attentions, resnets]);
    assert_eq!(rest, ["conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight"]);
}

fn found_names(names: &[String]) -> (Vec<String>, Vec<String>) {
    let tensors = model(&names.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    let (grids, rest) = found(&tensors);
    (grids, rest.into_iter().map(String::from).collect())
}

#[test]
fn experts_share_a_cell() {
    let mut names = vec![];
    for layer in 0..4 {
        names.push(format!("model.layers.{layer}.self_attn.q_proj.weight"));
        for expert in 0..64 {
            names.extend(["up", "down"].map(|m| format!("model.layers.{layer}.mlp.experts.{expert}.{m}_proj.weight")));
        }
    }
    let columns = "self_attn.q_proj mlp.experts.*.up_proj mlp.experts.*.down_proj";
    assert_eq!(found_names(&names).0, [format!("model.layers.* 0,1,2,3 | {columns}")]);
    assert!(html(&report(model(&names.iter().map(String::as_str).collect::<Vec<_>>(), 1))).contains("×64"));
}

#[test]
fn columns_split_after_their_first_part() {
    let columns =
        ["self_attn.q_proj", "transformer_blocks.0.attn1.to_q", "net.2", "proj_out", "layer.0.SelfAttention.q"];
    let split = [
        ("self_attn", "q_proj"),
        ("transformer_blocks.0", "attn1.to_q"),
        ("net", "2"),
        ("", "proj_out"),
        ("layer.0", "SelfAttention.q"),
    ];
    assert_eq!(columns.map(split_column), split);
}
