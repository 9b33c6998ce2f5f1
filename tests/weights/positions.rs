//! Position embeddings and registers move to where the model has them.

use super::*;

/// Bicubic interpolation keeps a constant and, away from the border, a ramp.
#[test]
fn a_position_embedding_of_another_grid_is_resized() {
    let cfg = BackboneConfig { pos_embed_grid: [6, 9], ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&fixture("weights/vit_zip.pth"), &store, &options(&cfg)).unwrap();
    assert_eq!(report.resized, ["pos_embed 3×3 → 6×9"]);
    let found = loaded(&store, "backbone.pos_embed");
    assert_eq!(found.len(), (1 + 6 * 9) * 8);
    let stored = filling("pos_embed", 10 * 8);
    assert_eq!(found[..8], stored[..8], "the class row stays");
    // The stored rows rise by 1 per column and by 3 per row; the centre of both grids is the same place.
    let middle: Vec<f32> = (0..8)
        .map(|c| (found[(1 + 2 * 9 + 4) * 8 + c] + found[(1 + 3 * 9 + 4) * 8 + c]) / 2.0)
        .collect();
    for (found, expected) in middle.iter().zip(&stored[5 * 8..]) {
        assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
    }
}

#[test]
fn class_rows_of_the_position_embedding_move_into_the_tokens() {
    let cfg = BackboneConfig { no_embed_class: true, ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&fixture("weights/vit_zip.pth"), &store, &options(&cfg)).unwrap();
    assert_eq!(report.resized, ["pos_embed of 1 prefix tokens → 0"]);
    let positions = filling("pos_embed", 10 * 8);
    assert_eq!(loaded(&store, "backbone.pos_embed"), positions[8..]);
    let class: Vec<f32> =
        filling("cls_token", 8).iter().zip(&positions).map(|(a, b)| a + b).collect();
    assert_eq!(loaded(&store, "backbone.cls_token"), class);
}

#[test]
fn registers_without_positions_get_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_registers(folder.path());
    let cfg = BackboneConfig { reg_tokens: 2, layer_scale: true, ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&path, &store, &options(&cfg)).unwrap();
    assert_eq!((report.map, report.missing.len()), (NameMap::Dinov2, 0));
    let (found, stored) = (loaded(&store, "backbone.pos_embed"), filling("pos_embed", 80));
    assert_eq!(found[..8], stored[..8]);
    assert!(found[8..24].iter().all(|&value| value == 0.0));
    assert_eq!(found[24..], stored[8..]);
    assert_eq!(loaded(&store, "backbone.reg_token"), filling("reg", 16));
}
