use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// The profile table: field, edge, local, cloud.
const PROFILES: [(&str, [f64; 3]); 7] = [
    ("bit_width", [2.0, 4.0, 8.0]),
    ("num_time_groups", [5.0, 10.0, 20.0]),
    ("group_size", [256.0, 128.0, 64.0]),
    ("min_accuracy", [0.65, 0.85, 0.95]),
    ("calibration_samples", [32.0, 128.0, 512.0]),
    ("enable_time_aware", [1.0, 1.0, 1.0]),
    ("enable_spatial", [0.0, 1.0, 1.0]),
];

/// A YAML file in a directory that lives as long.
fn yaml(text: &str) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn refusal(text: &str) -> String {
    let (directory, path) = yaml(text);
    let message = DiffusionQuantConfig::from_yaml(path).unwrap_err().to_string();
    message.replace(&format!("{}/", directory.path().display()), "")
}

fn variables(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn profiles_have_the_documented_values() {
    for (field, expected) in PROFILES {
        for ((profile, name), expected) in DeploymentProfile::ALL.into_iter().zip(expected) {
            let config = DiffusionQuantConfig::from_profile(name.parse().unwrap());
            assert_eq!((config.deployment_profile, profile.to_string().as_str()), (profile, name));
            let found = config.get(field).unwrap();
            assert_eq!(found.as_f64().or(found.as_bool().map(f64::from)), Some(expected), "{field} of {name}");
            assert_eq!((config.method, config.scheme), (Method::Mse, Scheme::Affine));
            config.validate().unwrap();
        }
    }
    assert_eq!(DiffusionQuantConfig::default(), DiffusionQuantConfig::from_profile(DeploymentProfile::Local));
    let unknown = "phone".parse::<DeploymentProfile>().unwrap_err().to_string();
    assert_eq!(unknown, "deployment_profile is 'phone', allowed: edge, local or cloud");
}

/// Manifests and the identity of a run hold these bytes.
#[test]
fn a_configuration_is_written_as_ever() {
    let mut config = DiffusionQuantConfig::default();
    config.set("layer_bit_widths", &json!({"b": 16, "a": 2})).unwrap();
    config.set("min_accuracy", &json!(1)).unwrap();
    let written = concat!(
        r#"{"deployment_profile":"local","modality":null,"variant":null,"format":null,"architecture":null,"#,
        r#""pre_tokenizer":null,"bit_width":4,"type":"int4","no_fallback":false,"group_size":128,"scheme":"affine","method":"mse","#,
        r#""min_accuracy":1.0,"min_sqnr_db":null,"fail_fast":false,"tensors":null,"skip_sensitive_layers":false,"#,
        r#""sensitive_layer_names":[],"sensitive_layer_patterns":[],"layer_bit_widths":{"a":2,"b":16},"#,
        r#""enable_mixed_precision":true,"target_model_size_mb":null,"target_bpw":null,"enable_time_aware":true,"#,
        r#""num_time_groups":10,"time_group_boundaries":"optimal","calibration_samples":128,"enable_spatial":true"#,
    );
    assert_eq!(serde_json::to_string(&config.recorded()).unwrap(), format!("{written}}}"));
    let of_the_run = r#","num_threads":0,"enable_streaming":true,"max_memory_limit_mb":null}"#;
    assert_eq!(serde_json::to_string(&config).unwrap(), format!("{written}{of_the_run}"));
}

#[test]
fn values_at_the_limits() {
    for (field, allowed, refused) in [
        ("bit_width", json!([2, 3, 4, 5, 6, 8]), json!([0, 1, 7, 9, 16, -2, 4.5, "4", null, true])),
        ("type", json!(["int2", "int3", "int8", "q4_0", "q4_k", "nvfp4"]), json!(["int7", "INT4", "q2_0", 4, null])),
        ("num_time_groups", json!([1, 50, 100]), json!([0, 101, -1, 1.5, "ten"])),
        ("group_size", json!([16, 32, 64, 128, 256]), json!([0, 8, 100, 512, "64"])),
        ("min_accuracy", json!([0, 0.0, 0.5, 1, 1.0]), json!([-0.01, 1.01, "high", null])),
        ("calibration_samples", json!([1, 1_000_000]), json!([0, -1, "many"])),
        ("deployment_profile", json!(["edge", "local", "cloud"]), json!(["Edge", "", 1])),
        ("modality", json!(["text", "code", "image", "audio", null]), json!(["video", 1])),
        ("scheme", json!(["affine", "asymmetric", "symmetric"]), json!(["linear", 1, null])),
        ("method", json!(["mse", "minmax", "unbiased"]), json!(["best", null])),
        ("min_sqnr_db", json!([null, 0, 12.5, -3]), json!(["high"])),
        ("fail_fast", json!([true, false]), json!([1, "yes", null])),
        ("tensors", json!([null, "attn|mlp"]), json!(["(", 1])),
        ("skip_sensitive_layers", json!([true, false]), json!([0])),
        ("sensitive_layer_names", json!([[], ["a", "b"]]), json!(["a", [1], null])),
        ("sensitive_layer_patterns", json!([[], ["^a.*b$"]]), json!([["("], "a"])),
        (
            "layer_bit_widths",
            json!([{}, {"a": 2, "b": 4, "c": 8, "d": 16, "e": 3, "f": "int5", "g": "q6_k"}]),
            json!([{"a": 7}, {"a": "4"}, {"a": "q9_k"}, [2], {"(": 4}]),
        ),
        ("enable_mixed_precision", json!([true, false]), json!(["on"])),
        ("target_model_size_mb", json!([null, 0.5, 1900]), json!([0, -1, "1GB"])),
        ("target_bpw", json!([null, 2.5, 64]), json!([0, 65, "4"])),
        ("enable_time_aware", json!([true, false]), json!(["on"])),
        ("enable_spatial", json!([true, false]), json!(["on"])),
        ("num_threads", json!([0, 1, 1024]), json!([-1, 1025, 1.5])),
        ("enable_streaming", json!([true, false]), json!(["on"])),
        ("max_memory_limit_mb", json!([null, 192, 300]), json!([0, 191, -1, "1GB"])),
    ] {
        for value in allowed.as_array().unwrap() {
            let mut config = DiffusionQuantConfig::default();
            config.set(field, value).unwrap();
            config.validate().unwrap();
            assert_eq!(config.get(field).unwrap().as_f64(), value.as_f64(), "{field}");
        }
        for value in refused.as_array().unwrap() {
            let message = DiffusionQuantConfig::default().set(field, value).unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
            let explained = message.contains(", allowed: ") || message.contains("not a regular expression");
            assert!(explained, "{field} {value}: {message}");
        }
    }
}

#[test]
fn a_field_set_in_rust_is_checked_as_well() {
    let message = |change: fn(&mut DiffusionQuantConfig)| {
        let mut config = DiffusionQuantConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert_eq!(message(|c| c.num_time_groups = 101), "num_time_groups is 101, allowed: 1 to 100");
    assert_eq!(message(|c| c.min_accuracy = f64::NAN), "min_accuracy is 'NaN', allowed: 0.0 to 1.0");
    assert_eq!(message(|c| c.min_accuracy = 1.5), "min_accuracy is 1.5, allowed: 0.0 to 1.0");
    assert_eq!(message(|c| c.calibration_samples = -1), "calibration_samples is -1, allowed: 1 or more");
    assert_eq!(message(|c| c.num_threads = 1025), "num_threads is 1025, allowed: 1 to 1024, or 0 for all cores");
    assert!(message(|c| c.tensors = Some("(".into())).starts_with("tensors is '(', which is not a regular expression"));
    assert!(message(|c| (c.target_bpw, c.target_model_size_mb) = (Some(3.0), Some(1.0))).contains("one of them"));
    let uniform = message(|c| {
        c.enable_mixed_precision = false;
        c.layer_bit_widths.insert("a".into(), Width::Of(WeightType::Int(Bits::Eight)));
    });
    assert!(uniform.starts_with("layer_bit_widths is set but enable_mixed_precision is false"));
}

#[test]
fn yaml_gives_back_what_was_written() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    let mut config = DiffusionQuantConfig::from_profile(DeploymentProfile::Edge);
    config.to_yaml(&path).unwrap();
    assert_eq!(DiffusionQuantConfig::from_yaml(&path).unwrap(), config);
    for (field, value) in [
        ("modality", json!("audio")),
        ("bit_width", json!(8)),
        ("type", json!("q8_0")),
        ("min_accuracy", json!(0.1 + 0.2)),
        ("min_sqnr_db", json!(-1e-300)),
        ("tensors", json!("a: 'b' #\n\"c\"")),
        ("sensitive_layer_names", json!(["null", "1", "true", ""])),
        ("sensitive_layer_patterns", json!(["^\\d+$"])),
        ("layer_bit_widths", json!({"1": 2, "a.b": 16})),
        ("target_bpw", json!(std::f64::consts::PI)),
        ("max_memory_limit_mb", json!(300)),
        ("fail_fast", json!(true)),
    ] {
        config.set(field, &value).unwrap();
    }
    config.to_yaml(&path).unwrap();
    assert_eq!(DiffusionQuantConfig::from_yaml(&path).unwrap(), config);
}

#[test]
fn a_yaml_file_that_is_wrong_is_refused_by_name() {
    assert_eq!(refusal("bitwidth: 4"), "c.yaml: there is no field 'bitwidth'; did you mean bit_width?");
    assert_eq!(refusal("min_acuracy: 0.9"), "c.yaml: there is no field 'min_acuracy'; did you mean min_accuracy?");
    assert_eq!(refusal("bits: 4"), "c.yaml: there is no field 'bits'; did you mean bit_width?");
    assert!(refusal("zzz: 1").starts_with("c.yaml: there is no field 'zzz', allowed: deployment_profile, "));
    assert_eq!(refusal("bit_width: 7"), "c.yaml: bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8");
    assert_eq!(
        refusal("deployment_profile: phone"),
        "c.yaml: deployment_profile is 'phone', allowed: edge, local or cloud"
    );
    assert_eq!(refusal("min_accuracy: .nan"), "c.yaml: min_accuracy is '.nan', allowed: 0.0 to 1.0");
    assert!(refusal("min_sqnr_db: .inf").starts_with("c.yaml: min_sqnr_db is '.inf', allowed: a number"));
    assert!(refusal("bit_width: 4\nbit_width: 8").contains("duplicate"), "{}", refusal("bit_width: 4\nbit_width: 8"));
    assert!(refusal("a: [").starts_with("c.yaml: not YAML: "));
    assert!(refusal("4").starts_with("c.yaml: expected fields"));
    assert!(refusal("1: 2").contains("put it in quotes"));
    assert!(refusal("target_bpw: 3\ntarget_model_size_mb: 1").contains("both set"));
    let missing = DiffusionQuantConfig::from_yaml("/none/c.yaml").unwrap_err();
    assert!(missing.to_string().starts_with("/none/c.yaml: no such file"), "{missing}");
    let (_directory, empty) = yaml("# nothing\n");
    assert_eq!(DiffusionQuantConfig::from_yaml(empty).unwrap(), DiffusionQuantConfig::default());
}

#[test]
fn each_variable_overrides_its_field() {
    for (name, field, text, value, wrong) in [
        ("ARROW_QUANT_BIT_WIDTH", "bit_width", "2", json!(2), "7"),
        ("ARROW_QUANT_TYPE", "type", "q4_k", json!("q4_k"), "q9_k"),
        ("ARROW_QUANT_NUM_TIME_GROUPS", "num_time_groups", "7", json!(7), "0"),
        ("ARROW_QUANT_GROUP_SIZE", "group_size", " 32 ", json!(32), "33"),
        ("ARROW_QUANT_MIN_ACCURACY", "min_accuracy", "0.5", json!(0.5), "2"),
        ("ARROW_QUANT_CALIBRATION_SAMPLES", "calibration_samples", "9", json!(9), "some"),
        ("ARROW_QUANT_FAIL_FAST", "fail_fast", "true", json!(true), "maybe"),
        ("ARROW_QUANT_NUM_THREADS", "num_threads", "3", json!(3), "-1"),
        ("ARROW_QUANT_MAX_MEMORY_MB", "max_memory_limit_mb", "300", json!(300), "1"),
    ] {
        let mut config = DiffusionQuantConfig::default();
        let set = layers::apply_variables(&mut config, &variables(&[(name, text)])).unwrap();
        assert_eq!((set.as_slice(), config.get(field)), (&[field][..], Some(value)));
        let message = layers::apply_variables(&mut config, &variables(&[(name, wrong)])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name} is '{wrong}', allowed: ")), "{message}");
        assert_eq!(layers::apply_variables(&mut config, &variables(&[(name, "")])).unwrap().len(), 0, "empty: not set");
        let misspelled = format!("{name}S");
        let message = layers::apply_variables(&mut config, &variables(&[(&misspelled, text)])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("there is no variable {misspelled}; did you mean {name}?")), "{message}");
    }
    let set = layers::apply_variables(&mut DiffusionQuantConfig::default(), &variables(&[("ARROW_QUANT_BITS", "4")]));
    let message = set.unwrap_err().to_string();
    assert!(message.contains("did you mean ARROW_QUANT_BIT_WIDTH?"), "{message}");
    for name in ["ARROW_QUANT_METHOD", "ARROW_QUANT_PROFILE", "ARROW_QUANT_DEPLOYMENT_PROFILE"] {
        let set = layers::apply_variables(&mut DiffusionQuantConfig::default(), &variables(&[(name, "edge")]));
        let message = set.unwrap_err().to_string();
        assert!(message.starts_with(&format!("there is no variable {name}: set the field in")), "{message}");
    }
    let mut config = DiffusionQuantConfig::default();
    let others = variables(&[("ARROW_QUANT_ISA", "scalar"), ("ARROW_QUANT_BENCH_DIR", "x"), ("PATH", "/bin")]);
    assert!(layers::apply_variables(&mut config, &others).unwrap().is_empty());
}

/// Each pair of places that a value can come from: the later wins.
#[test]
fn later_places_win() {
    let (_directory, file) = yaml("deployment_profile: edge\ngroup_size: 32");
    let layers = |with: &[&str]| {
        let mut layers = ConfigLayers::new();
        if with.contains(&"file") {
            layers = layers.file(&file);
        }
        if with.contains(&"variable") {
            layers = layers.variables(variables(&[("ARROW_QUANT_GROUP_SIZE", "64")]));
        }
        if with.contains(&"explicit") {
            layers = layers.explicit("group_size", 256.into());
        }
        if with.contains(&"profile") {
            layers = layers.explicit("deployment_profile", "cloud".into());
        }
        let layered = layers.load().unwrap();
        (layered.config.group_size.get(), layered.origin("group_size"))
    };
    let (profile, variable) = (Origin::Profile("cloud"), Origin::Variable("ARROW_QUANT_GROUP_SIZE"));
    let from_file = Origin::File(file.clone());
    assert_eq!(layers(&[]), (128, Origin::Profile("local")));
    for (with, expected) in [
        (["profile", ""], (64, profile)),
        (["profile", "file"], (32, from_file.clone())),
        (["profile", "variable"], (64, variable.clone())),
        (["profile", "explicit"], (256, Origin::Explicit)),
        (["file", "variable"], (64, variable)),
        (["file", "explicit"], (256, Origin::Explicit)),
        (["variable", "explicit"], (256, Origin::Explicit)),
    ] {
        assert_eq!(layers(&with), expected, "{with:?}");
    }
    // The profile of the file, unless one is named: its values are below all of the file's.
    let layered = ConfigLayers::new().file(&file).load().unwrap();
    assert_eq!((layered.config.weight_type, layered.config.group_size.get()), (WeightType::Int(Bits::Two), 32));
    assert_eq!(layered.origin("deployment_profile"), from_file);
    assert_eq!(layered.origin("bit_width"), Origin::Profile("edge"));
}

#[test]
fn a_target_takes_the_place_of_one_in_the_other_unit() {
    let (_directory, file) = yaml("target_bpw: 3.5");
    let layered = ConfigLayers::new().file(&file).explicit("target_model_size_mb", 12.into()).load().unwrap();
    assert_eq!((layered.config.target_bpw, layered.config.target_model_size_mb), (None, Some(12.0)));
}

fn explicit(values: &[(&str, Value)]) -> Result<DiffusionQuantConfig> {
    let layers = values.iter().fold(ConfigLayers::new(), |layers, (name, value)| layers.explicit(name, value.clone()));
    Ok(layers.load()?.config)
}

#[test]
fn bits_and_type_are_two_names_of_the_same() {
    let of = |values: &[(&str, Value)]| {
        let config = explicit(values).unwrap();
        (config.get("bit_width").unwrap(), config.get("type").unwrap())
    };
    assert_eq!(of(&[]), (json!(4), json!("int4")));
    assert_eq!(of(&[("bit_width", json!(3))]), (json!(3), json!("int3")));
    assert_eq!(of(&[("type", json!("int8"))]), (json!(8), json!("int8")));
    assert_eq!(of(&[("type", json!("q6_k"))]), (json!(6), json!("q6_k")));
    let both = [("type", json!("q4_k")), ("bit_width", json!(4))];
    assert_eq!(of(&both), (json!(4), json!("q4_k")), "in either order, blocks of four bits are meant");
    let mut config = explicit(&both).unwrap();
    config.set("bit_width", &json!(4)).unwrap();
    assert_eq!(config.weight_type, WeightType::Int(Bits::Four), "set by itself, bits are those of integers");
}

#[test]
fn a_type_that_contradicts_the_bits_beside_it_is_refused_with_both_names() {
    let message = explicit(&[("type", json!("int8")), ("bit_width", json!(4))]).unwrap_err().to_string();
    assert_eq!(message, "type is 'int8' and bit_width is 4: make them agree, or leave one out");
    assert_eq!(
        refusal("bit_width: 5\ntype: q4_k"),
        "c.yaml: type is 'q4_k' and bit_width is 5: make them agree, or leave one out"
    );
    let both = [("ARROW_QUANT_TYPE", "int2"), ("ARROW_QUANT_BIT_WIDTH", "4")];
    let expected = "ARROW_QUANT_TYPE is 'int2' and ARROW_QUANT_BIT_WIDTH is '4': make them agree, or leave one out";
    let load = ConfigLayers::new().variables(variables(&both)).load();
    assert_eq!(load.unwrap_err().to_string(), expected);
    let message = layers::apply_variables(&mut DiffusionQuantConfig::default(), &variables(&both)).unwrap_err();
    assert_eq!(message.to_string(), expected);
}

#[test]
fn a_later_place_has_the_say_on_bits_and_type() {
    let (_directory, file) = yaml("type: q4_k");
    let layered = ConfigLayers::new().file(&file).flag("bit_width", 8.into()).load().unwrap();
    assert_eq!(layered.config.weight_type, WeightType::Int(Bits::Eight));
    assert_eq!((layered.origin("bit_width"), layered.origin("type")), {
        let flag = Origin::Flag("--bits".to_string());
        (flag.clone(), flag)
    });
    let (_directory, file) = yaml("bit_width: 8");
    let layered = ConfigLayers::new().file(&file).flag("type", "q4_k".into()).load().unwrap();
    assert_eq!(layered.value("type"), json!("q4_k"));
    assert_eq!(layered.origin("bit_width"), Origin::Flag("--type".to_string()));
}

#[test]
fn a_method_that_the_type_has_not_is_refused() {
    let message = |values: &[(&str, Value)]| explicit(values).unwrap_err().to_string();
    assert_eq!(
        message(&[("method", json!("reference"))]),
        "method is 'reference' and type is 'int4', allowed with it: minmax, mse, unbiased or ldlq"
    );
    assert_eq!(
        message(&[("method", json!("minmax")), ("type", json!("q4_k"))]),
        "method is 'minmax' and type is 'q4_k', allowed with it: mse, ldlq or reference"
    );
    let of_a_layer = message(&[("method", json!("unbiased")), ("layer_bit_widths", json!({"a": "q6_k", "b": 3}))]);
    assert!(of_a_layer.contains("layer_bit_widths is {") && of_a_layer.contains("q6_k"), "{of_a_layer}");
    explicit(&[("method", json!("reference")), ("type", json!("q4_k"))]).unwrap();
}
