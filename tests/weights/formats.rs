//! Containers: safetensors, torch, pickles and NumPy archives.

use super::*;

/// The same transformer in every container and naming.
#[test]
fn the_same_model_loads_from_every_format() {
    let cases = [
        ("vit_zip.pth", Format::TorchZip, NameMap::Timm),
        ("vit_protocol4.pth", Format::TorchZip, NameMap::Timm),
        ("vit_legacy.pth", Format::TorchLegacy, NameMap::Timm),
        ("vit_f16.safetensors", Format::Safetensors, NameMap::Timm),
        ("vit_bf16.safetensors", Format::Safetensors, NameMap::Timm),
        ("vit.npz", Format::Npz, NameMap::Google),
        ("vit_protocol2.pkl", Format::Pickle, NameMap::Timm),
        ("vit_protocol4.pkl", Format::Pickle, NameMap::Timm),
        ("vit_protocol5.pkl", Format::Pickle, NameMap::Timm),
        ("nested.pth", Format::TorchZip, NameMap::Timm),
        ("nested_legacy.pth", Format::TorchLegacy, NameMap::Timm),
    ];
    for (name, format, map) in cases {
        let path = fixture(&format!("weights/{name}"));
        let store = store(&tiny(), Variant::Mlp);
        let report = load_pretrained(&path, &store, &options(&tiny())).unwrap();
        assert_eq!((report.format, report.map), (format, map), "{name}");
        assert_eq!(report.matched.len(), 4 + 2 * 12 + 2, "{name}");
        assert!(
            report.missing.iter().all(|n| n.contains("adaptmlp.") || n.contains("token_select.")),
            "{name}"
        );
        assert_eq!(report.missing.len(), 2 * (4 + 2), "{name}");
        assert!(report.unexpected.is_empty() && report.resized.is_empty(), "{name}: {report}");
        assert_eq!(report.ignored, ["head.bias", "head.weight"], "{name}");
        for parameter in &report.matched {
            let own = parameter.strip_prefix("backbone.").unwrap();
            let found = loaded(&store, parameter);
            let rounding = if name.contains("bf16") {
                0.2
            } else if name.contains("f16") {
                0.02
            } else {
                0.0
            };
            for (found, expected) in found.iter().zip(filling(own, found.len())) {
                assert!(
                    (found - expected).abs() <= rounding,
                    "{name}: {parameter}: {found} for {expected}"
                );
            }
        }
        assert_eq!(report.sha256, sha256(&path).unwrap());
    }
}

#[test]
fn views_shared_memory_and_every_type_of_torch_are_read() {
    for name in ["odd.pth", "odd_legacy.pth"] {
        let file = File::read(&fixture(&format!("weights/{name}"))).unwrap();
        let shapes: BTreeMap<&str, (DType, Vec<usize>)> = file
            .tensors
            .iter()
            .map(|(n, t)| (n.as_str(), (t.dtype(), t.dims().to_vec())))
            .collect();
        let expected = BTreeMap::from([
            ("transposed", (DType::F32, vec![3, 5])),
            ("row_of_a_matrix", (DType::F32, vec![6])),
            ("column_of_a_matrix", (DType::F32, vec![6])),
            ("permuted", (DType::F32, vec![2, 3, 4])),
            ("channels_last", (DType::F32, vec![2, 3, 2, 2])),
            ("tied", (DType::F32, vec![4])),
            ("tied_again", (DType::F32, vec![4])),
            ("parameter", (DType::F32, vec![2, 2])),
            ("scalar", (DType::F32, vec![])),
            ("empty", (DType::F32, vec![0, 3])),
            ("f16", (DType::F16, vec![3])),
            ("bf16", (DType::BF16, vec![3])),
            ("f64", (DType::F64, vec![3])),
            ("i64", (DType::I64, vec![2])),
            ("i32", (DType::I32, vec![2])),
            ("bool", (DType::U8, vec![2])),
        ]);
        assert_eq!(shapes, expected, "{name}");
        for (own, tensor) in &file.tensors {
            match (own.as_str(), tensor.dtype()) {
                ("tied_again", _) => assert_eq!(values(tensor), filling("tied", 4)),
                ("i64", _) => assert_eq!(tensor.to_vec1::<i64>().unwrap(), [-3, 4]),
                ("i32", _) => assert_eq!(tensor.to_vec1::<i32>().unwrap(), [-3, 4]),
                ("bool", _) => assert_eq!(tensor.to_vec1::<u8>().unwrap(), [1, 0]),
                _ => assert_eq!(values(tensor), filling(own, tensor.elem_count()), "{name}: {own}"),
            }
        }
    }
    let nested = File::read(&fixture("weights/nested.pth")).unwrap();
    assert_eq!(nested.nesting, ["model"]);
    assert_eq!(nested.beside, ["optimizer", "epoch", "args", "scaler"]);
}

#[test]
fn a_python_object_is_refused_and_not_built() {
    let error = File::read(&fixture("weights/whole_module.pth")).unwrap_err();
    assert!(
        error.to_string().contains("whole_module.pth") && error.to_string().contains("Linear"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("state_dict()"));
}

#[test]
fn a_truncated_file_of_any_format_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["vit_zip.pth", "vit_legacy.pth", "vit_f16.safetensors", "vit.npz", "vit_protocol4.pkl"]
    {
        let bytes = std::fs::read(fixture(&format!("weights/{name}"))).unwrap();
        let path = folder.path().join(name);
        for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = File::read(&path)
                .err()
                .unwrap_or_else(|| panic!("{name} cut to {length} bytes was read"));
            assert!(
                error.to_string().contains(name) && error.hint().is_some(),
                "{length}: {error}"
            );
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_named_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[u8], &str); 5] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
        (b"hello, world", "known format"),
    ];
    for (bytes, expected) in cases {
        let path = folder.path().join("weights.pth");
        std::fs::write(&path, bytes).unwrap();
        let error = File::read(&path).unwrap_err();
        assert!(error.to_string().contains(expected) && error.hint().is_some(), "{error}");
    }
    assert!(File::read(folder.path()).unwrap_err().to_string().contains("folder"));
}

#[test]
fn a_safetensors_file_may_begin_like_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    // Lengths of the header whose lowest bytes are those of a pickle and of a zip archive ("PK").
    for length in [0x80, 0x4b50] {
        let mut bytes = u64::to_le_bytes(length as u64).to_vec();
        bytes.extend(format!("{header:length$}").into_bytes());
        bytes.extend(1.5f32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = File::read(&path).unwrap();
        assert_eq!(file.format, Format::Safetensors);
        assert_eq!(values(&file.tensors["w"]), [1.5]);
    }
}
